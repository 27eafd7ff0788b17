//! Debian's WordPress, unmodified: taken from its package with an ordinary wp-config.php, and used through its own
//! pages as an owner and a visitor would.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use hyper::Method;
use rand::Rng;
use serde_json::{Value, json};
use walkdir::WalkDir;

use crate::html::{between, path_of, visible};
use crate::http::{Browser, Place};
use crate::picture;

pub const PACKAGE: &str = "/usr/share/wordpress";
pub const USER: &str = "admin";
pub const PASSWORD: &str = "correct-horse-7";

/// Copies the package with its links followed, so that the tree stands alone.
pub fn prepare(to: &Path) -> Result<PathBuf> {
    let tree = to.join("wordpress");
    for entry in WalkDir::new(PACKAGE).follow_links(true) {
        let entry = entry.context("cannot read Debian's wordpress; apt-get install wordpress")?;
        let path = tree.join(entry.path().strip_prefix(PACKAGE).expect("the walk is below it"));
        if entry.file_type().is_dir() {
            fs::create_dir_all(&path)?;
        } else {
            fs::copy(entry.path(), &path)
                .with_context(|| format!("cannot copy {}", entry.path().display()))?;
        }
    }
    fs::write(tree.join("wp-config.php"), config("wordpress"))?;
    Ok(tree)
}

/// As wp-config-sample.php has it. The site's address is what the visitor typed, so that the VIP, a loopback port
/// and a name all lead to working pages.
fn config(database: &str) -> String {
    let mut random = rand::rng();
    let mut salt = || (0..64).map(|_| random.sample(rand::distr::Alphanumeric) as char).collect::<String>();
    let password: String = salt().chars().take(20).collect();
    let mut text = format!(
        "<?php\n\
         define( 'DB_NAME', '{database}' );\n\
         define( 'DB_USER', '{database}' );\n\
         define( 'DB_PASSWORD', '{password}' );\n\
         define( 'DB_HOST', 'localhost' );\n\
         define( 'DB_CHARSET', 'utf8mb4' );\n\
         define( 'DB_COLLATE', '' );\n\n"
    );
    for key in ["AUTH", "SECURE_AUTH", "LOGGED_IN", "NONCE"] {
        text += &format!("define( '{key}_KEY', '{}' );\ndefine( '{key}_SALT', '{}' );\n", salt(), salt());
    }
    text += "\n$table_prefix = 'wp_';\n\
             define( 'WP_DEBUG', false );\n\
             define( 'WP_HOME', 'http://' . ( $_SERVER['HTTP_HOST'] ?? 'localhost' ) );\n\
             define( 'WP_SITEURL', WP_HOME );\n\n\
             if ( ! defined( 'ABSPATH' ) ) {\n\tdefine( 'ABSPATH', __DIR__ . '/' );\n}\n\
             require_once ABSPATH . 'wp-settings.php';\n";
    text
}

/// Its own web installer, as the owner meets it.
pub async fn install(place: &Place, title: &str) -> Result<()> {
    let mut owner = Browser::new(place);
    let home = owner.get("/").await?;
    if home.status != 302 || !home.location().unwrap_or_default().contains("install.php") {
        bail!("a new WordPress sends its owner to the installer, this one answers {}", home.status);
    }
    let fields = [
        ("weblog_title", title),
        ("user_name", USER),
        ("admin_password", PASSWORD),
        ("admin_password2", PASSWORD),
        ("admin_email", "owner@demo.test"),
        ("blog_public", "0"),
        ("language", ""),
        ("Submit", "Install WordPress"),
    ];
    let answer = owner.post_form("/wp-admin/install.php?step=2", &fields).await?;
    if answer.status != 200 || !answer.text().contains("Success!") {
        bail!("the installer answers {}: {}", answer.status, visible(&answer.text()));
    }
    Ok(())
}

/// Somebody who is logged in.
pub struct Owner {
    browser: Browser,
}

impl Owner {
    pub async fn log_in(place: &Place) -> Result<Owner> {
        let mut browser = Browser::new(place);
        browser.page("/wp-login.php").await?;
        let fields = [("log", USER), ("pwd", PASSWORD), ("wp-submit", "Log In"), ("testcookie", "1")];
        let answer = browser.post_form("/wp-login.php", &fields).await?;
        if answer.status != 302 {
            bail!("the login page answers {}: {}", answer.status, visible(&answer.text()));
        }
        Ok(Owner { browser })
    }

    /// Publishes a post as the editor does (WordPress REST API, posts); gives the path of its page.
    pub async fn publish(&mut self, title: &str, content: &str) -> Result<String> {
        let editor = self.browser.page("/wp-admin/post-new.php").await?;
        let nonce = between(&editor, "createNonceMiddleware( \"", "\"").context("the editor has no nonce")?;
        let body = json!({ "title": title, "content": content, "status": "publish" }).to_string();
        let headers = [("content-type", "application/json"), ("x-wp-nonce", nonce)];
        let answer =
            self.browser.send(Method::POST, "/?rest_route=/wp/v2/posts", &headers, body.into()).await?;
        let made: Value = serde_json::from_slice(&answer.body)
            .with_context(|| format!("publishing answers {}: {}", answer.status, visible(&answer.text())))?;
        let link = made["link"].as_str().with_context(|| format!("publishing answers {made}"))?;
        path_of(link)
    }

    /// Uploads a picture as the media page does; gives the path of the file.
    pub async fn upload(&mut self, name: &str, content: &[u8]) -> Result<String> {
        let page = self.browser.page("/wp-admin/media-new.php").await?;
        let nonce =
            between(&page, "\"_wpnonce\":\"", "\"").context("the media page has no nonce")?.to_owned();
        let fields = [("name", name), ("action", "upload-attachment"), ("_wpnonce", &nonce)];
        let file = ("async-upload", name, "image/png", content);
        let answer = self.browser.post_file("/wp-admin/async-upload.php", &fields, file).await?;
        let made: Value = serde_json::from_slice(&answer.body)
            .with_context(|| format!("uploading answers {}: {}", answer.status, visible(&answer.text())))?;
        let url = made["data"]["url"].as_str().with_context(|| format!("uploading answers {made}"))?;
        path_of(url)
    }
}

/// A post and the picture in it.
pub struct Published {
    pub post: String,
    pub title: String,
    pub picture: String,
    pub pixels: Vec<u8>,
}

pub async fn publish_with_picture(place: &Place, title: &str) -> Result<Published> {
    let mut owner = Owner::log_in(place).await?;
    let pixels = picture::png(320, rand::rng().random());
    let picture = owner.upload("evening.png", &pixels).await?;
    let content =
        format!("<p>Written on a rack of three servers.</p><img src=\"{picture}\" alt=\"evening\">");
    let post = owner.publish(title, &content).await?;
    Ok(Published { post, title: title.to_owned(), picture, pixels })
}

impl Published {
    /// A visitor sees the post, and the picture byte for byte.
    pub async fn check(&self, place: &Place) -> Result<()> {
        let mut visitor = Browser::new(place);
        let answer = visitor.get(&self.post).await?;
        if answer.status != 200 || !answer.text().contains(&self.title) {
            bail!("{} does not show {:?}: status {}", self.post, self.title, answer.status);
        }
        let answer = visitor.get(&self.picture).await?;
        if answer.status != 200 || answer.body != self.pixels {
            bail!("{} is not the picture that was uploaded: status {}", self.picture, answer.status);
        }
        Ok(())
    }
}
