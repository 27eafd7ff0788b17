//! Somebody who keeps a blog: publishes, edits, comments, uploads pictures, searches, deletes. Keeps in mind what each
//! post must be, and reads it back after every edit. Called by hour.rs.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use hyper::Method;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use serde_json::{Value, json};

use crate::editors::reader::{ErrorPage, Reader};
use crate::html::{between, path_of};
use crate::http::{Answer, query};
use crate::picture;
use crate::wordpress::{PASSWORD, USER};

/// More would only make their histories long to read.
const EDITS_MAX: u64 = 12;

pub struct Blogger {
    name: String,
    reader: Reader,
    random: StdRng,
    made: usize,
    posts: Vec<Post>,
    done: Vec<Post>,
    pictures: Vec<Picture>,
}

/// A post as it must be.
#[derive(Debug, Clone)]
struct Post {
    id: u64,
    path: String,
    title: String,
    content: String,
    /// Each leaves a revision; the first text leaves none (WordPress 6.1).
    edits: u64,
    comments: Vec<String>,
}

struct Picture {
    path: String,
    pixels: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
enum Deed {
    Publish,
    Edit,
    Comment,
    Upload,
    Delete,
    Search,
    Look,
    LogIn,
}

/// How often each is chosen.
const DEEDS: [(Deed, u32); 8] = [
    (Deed::Publish, 18),
    (Deed::Edit, 30),
    (Deed::Comment, 20),
    (Deed::Upload, 6),
    (Deed::Delete, 6),
    (Deed::Search, 8),
    (Deed::Look, 8),
    (Deed::LogIn, 4),
];

impl Blogger {
    pub fn new(name: &str, reader: Reader, random: StdRng) -> Blogger {
        let (posts, done, pictures) = Default::default();
        Blogger { name: name.to_owned(), reader, random, made: 0, posts, done, pictures }
    }

    /// Does one thing. After an error page nobody knows what was saved: that post is left alone from then on.
    pub async fn work(&mut self) {
        let chosen = DEEDS.choose_weighted(&mut self.random, |(_, often)| *often);
        let (mut deed, _) = *chosen.expect("some deed is chosen at times");
        if self.posts.is_empty() && !matches!(deed, Deed::Upload | Deed::LogIn) {
            deed = Deed::Publish;
        }
        let nth = self.random.random_range(0..self.posts.len().max(1));
        if let Err(error) = self.act(deed, nth).await {
            if !error.is::<ErrorPage>() {
                self.reader.tally().untrue(&format!("{deed:?} by {}: {error:#}", self.name));
            }
            if nth < self.posts.len() {
                self.posts.remove(nth);
            }
        } else if self.posts.get(nth).is_some_and(|post| post.edits >= EDITS_MAX) {
            self.done.push(self.posts.remove(nth));
        }
    }

    /// Everything that was saved is there once.
    pub async fn read_back(&mut self) -> usize {
        let posts = [self.done.clone(), self.posts.clone()].concat();
        for post in &posts {
            if let Err(error) = self.check(post).await
                && !error.is::<ErrorPage>()
            {
                self.reader.tally().untrue(&format!("at the end, by {}: {error:#}", self.name));
            }
        }
        posts.iter().map(|post| 1 + post.edits as usize + post.comments.len()).sum()
    }

    pub async fn log_in(&mut self) -> Result<()> {
        // As on another device.
        self.reader = self.reader.stranger();
        self.reader.page("/wp-login.php").await?;
        let fields = [("log", USER), ("pwd", PASSWORD), ("wp-submit", "Log In"), ("testcookie", "1")];
        self.reader.post("/wp-login.php", &fields, &[302]).await?;
        Ok(())
    }

    async fn act(&mut self, deed: Deed, nth: usize) -> Result<()> {
        match deed {
            Deed::Publish => return self.publish().await,
            Deed::Upload => return self.upload().await,
            Deed::LogIn => return self.log_in().await,
            _ => {}
        }
        let post = self.posts[nth].clone();
        let changed = match deed {
            Deed::Edit => self.edit(post).await?,
            Deed::Comment => self.comment(post).await?,
            Deed::Delete => {
                self.delete(&post).await?;
                self.posts.remove(nth);
                return Ok(());
            }
            Deed::Search => return self.search(&post).await,
            _ => return self.look(&post).await,
        };
        // Also when it is not read back as it should be.
        self.posts[nth] = changed.clone();
        self.check(&changed).await
    }

    async fn publish(&mut self) -> Result<()> {
        self.made += 1;
        let title = format!("Harbour{}{:05}", self.name.to_lowercase(), self.made);
        let content = format!("<p>Written by {}: {}.</p>", self.name, self.random.random::<u32>());
        let editor = self.reader.page("/wp-admin/post-new.php").await?;
        let body = json!({ "title": title, "content": content, "status": "publish" });
        let made = self.rest(&editor, Method::POST, "/wp/v2/posts", &body, &[201]).await?;
        let made: Value = serde_json::from_slice(&made.body)?;
        self.reader.tally().edited();
        let id = made["id"].as_u64().with_context(|| format!("publishing answers {made}"))?;
        let path = path_of(made["link"].as_str().context("a post without a link")?)?;
        let post = Post { id, path, title, content, edits: 0, comments: Vec::new() };
        self.posts.push(post.clone());
        self.check(&post).await
    }

    async fn edit(&mut self, mut post: Post) -> Result<Post> {
        let editor = self.editor(&post).await?;
        let content = format!("{}<p>And {}.</p>", post.content, self.random.random::<u32>());
        let route = format!("/wp/v2/posts/{}", post.id);
        self.rest(&editor, Method::POST, &route, &json!({ "content": content }), &[200]).await?;
        self.reader.tally().edited();
        post.content = content;
        post.edits += 1;
        Ok(post)
    }

    /// The page with the post's editor, from which it asks the REST API.
    async fn editor(&mut self, post: &Post) -> Result<String> {
        self.reader.page(&format!("/wp-admin/post.php?post={}&action=edit", post.id)).await
    }

    async fn rest(
        &mut self,
        editor: &str,
        method: Method,
        route: &str,
        body: &Value,
        expected: &[u16],
    ) -> Result<Answer> {
        let nonce = between(editor, "createNonceMiddleware( \"", "\"").context("the editor has no nonce")?;
        let headers = [("content-type", "application/json"), ("x-wp-nonce", nonce)];
        let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
        self.reader.ask(method, &format!("/?rest_route={route}"), &headers, body, expected).await
    }

    /// Through the form below the post.
    async fn comment(&mut self, mut post: Post) -> Result<Post> {
        let text = format!("A word of {}: {}", self.name, self.random.random::<u32>());
        let id = post.id.to_string();
        let fields =
            [("comment", &*text), ("comment_post_ID", &*id), ("comment_parent", "0"), ("submit", "Post")];
        self.reader.post("/wp-comments-post.php", &fields, &[302]).await?;
        self.reader.tally().edited();
        post.comments.push(text);
        Ok(post)
    }

    async fn delete(&mut self, post: &Post) -> Result<()> {
        let editor = self.editor(post).await?;
        let route = format!("/wp/v2/posts/{}", post.id);
        self.rest(&editor, Method::DELETE, &route, &Value::Null, &[200]).await?;
        self.reader.tally().edited();
        let mut visitor = self.reader.stranger();
        visitor.ask(Method::GET, &post.path, &[], Bytes::new(), &[404]).await?;
        Ok(())
    }

    async fn upload(&mut self) -> Result<()> {
        self.made += 1;
        let (name, pixels) =
            (format!("{}{}.png", self.name, self.made), picture::png(160, self.random.random()));
        let page = self.reader.page("/wp-admin/media-new.php").await?;
        let nonce =
            between(&page, "\"_wpnonce\":\"", "\"").context("the media page has no nonce")?.to_owned();
        let fields = [("name", &*name), ("action", "upload-attachment"), ("_wpnonce", &nonce)];
        let file = ("async-upload", &*name, "image/png", &*pixels);
        let answer = self.reader.upload("/wp-admin/async-upload.php", &fields, file).await?;
        let made: Value = serde_json::from_slice(&answer.body)?;
        self.reader.tally().edited();
        let url = made["data"]["url"].as_str().with_context(|| format!("uploading answers {made}"))?;
        self.pictures.push(Picture { path: path_of(url)?, pixels });
        self.see_pictures().await
    }

    async fn see_pictures(&mut self) -> Result<()> {
        let Some(picture) = self.pictures.last() else { return Ok(()) };
        let shown = self.reader.ask(Method::GET, &picture.path, &[], Bytes::new(), &[200]).await?;
        ensure!(shown.body == picture.pixels, "{} is not the picture that was uploaded", picture.path);
        Ok(())
    }

    /// The title and the text as they were saved last, one revision an edit, each comment once.
    async fn check(&mut self, post: &Post) -> Result<()> {
        let editor = self.editor(post).await?;
        let route = format!("/wp/v2/posts/{}&context=edit", post.id);
        let saved = self.rest(&editor, Method::GET, &route, &Value::Null, &[200]).await?;
        let saved: Value = serde_json::from_slice(&saved.body)?;
        let (title, content) = (&saved["title"]["raw"], &saved["content"]["raw"]);
        ensure!(
            *title == post.title && *content == post.content,
            "post {} reads {title} {content}, not {:?} {:?}",
            post.id,
            post.title,
            post.content
        );
        let route = format!("/wp/v2/posts/{}/revisions&per_page=1", post.id);
        let revisions = self.rest(&editor, Method::GET, &route, &Value::Null, &[200]).await?;
        let revisions: u64 = revisions.header("x-wp-total").unwrap_or_default().parse()?;
        ensure!(revisions == post.edits, "post {} has {revisions} revisions, not {}", post.id, post.edits);
        self.check_comments(post).await?;
        self.check_that_it_is_there_once(post).await
    }

    async fn check_comments(&mut self, post: &Post) -> Result<()> {
        let path = format!("/?rest_route=/wp/v2/comments&post={}&per_page=100&order=asc&orderby=id", post.id);
        let found = self.reader.json(&path).await?;
        let found = found.as_array().context("the comments are no list")?;
        let found: Vec<&str> =
            found.iter().filter_map(|comment| comment["content"]["rendered"].as_str()).collect();
        let is_same = found.len() == post.comments.len()
            && found.iter().zip(&post.comments).all(|(found, comment)| found.contains(&**comment));
        ensure!(is_same, "post {} has the comments {found:?}, not {:?}", post.id, post.comments);
        Ok(())
    }

    async fn check_that_it_is_there_once(&mut self, post: &Post) -> Result<()> {
        let found = self.reader.json(&format!("/?rest_route=/wp/v2/posts&search={}", post.title)).await?;
        let found = found.as_array().context("the posts are no list")?;
        let ids: Vec<_> = found.iter().filter_map(|found| found["id"].as_u64()).collect();
        ensure!(ids == [post.id], "{} is there as {ids:?}, not as {}", post.title, post.id);
        Ok(())
    }

    async fn search(&mut self, post: &Post) -> Result<()> {
        let page = self.reader.stranger().page(&format!("/?{}", query(&[("s", &post.title)]))).await?;
        ensure!(page.contains(&post.path), "the search does not find {}", post.title);
        Ok(())
    }

    async fn look(&mut self, post: &Post) -> Result<()> {
        let mut visitor = self.reader.stranger();
        visitor.page("/").await?;
        let page = visitor.page(&post.path).await?;
        ensure!(page.contains(&post.title), "a visitor does not see {}", post.title);
        for comment in &post.comments {
            ensure!(page.contains(comment), "a visitor does not see the comment {comment:?}");
        }
        self.see_pictures().await
    }
}
