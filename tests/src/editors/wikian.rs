//! Somebody who edits a wiki: new pages, edits by form and API, moves, undos, searches, accounts for others. Keeps in
//! mind what each page's history must be, and reads it back after every edit. Called by hour.rs.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use serde_json::Value;

use crate::editors::reader::{ErrorPage, Reader};
use crate::html::{between, field, hidden_fields, text_area, unescaped};
use crate::http::query;
use crate::mediawiki::{PASSWORD, USER};
use crate::wait::until;

/// More would only make their histories long to read.
const EDITS_MAX: usize = 12;
/// The index of words is brought up to date when the answer has been given.
const SEARCH_LIMIT: Duration = Duration::from_secs(30);

pub struct Wikian {
    name: String,
    reader: Reader,
    random: StdRng,
    made: usize,
    /// The ones that are still edited, and all that were.
    pages: Vec<Page>,
    done: Vec<Page>,
}

/// A page as it must be.
#[derive(Debug, Clone)]
struct Page {
    title: String,
    /// A word that no other page has.
    word: String,
    /// From the first to the last.
    revisions: Vec<Revision>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Revision {
    summary: String,
    text: String,
}

#[derive(Debug, Clone, Copy)]
enum Deed {
    New,
    Edit,
    Api,
    Undo,
    Move,
    Search,
    Look,
    Invite,
    LogIn,
}

/// How often each is chosen.
const DEEDS: [(Deed, u32); 9] = [
    (Deed::New, 15),
    (Deed::Edit, 30),
    (Deed::Api, 20),
    (Deed::Undo, 10),
    (Deed::Move, 6),
    (Deed::Search, 6),
    (Deed::Look, 6),
    (Deed::Invite, 3),
    (Deed::LogIn, 4),
];

impl Wikian {
    pub fn new(name: &str, reader: Reader, random: StdRng) -> Wikian {
        Wikian { name: name.to_owned(), reader, random, made: 0, pages: Vec::new(), done: Vec::new() }
    }

    /// Does one thing. After an error page nobody knows what was saved: that page is left alone from then on.
    pub async fn work(&mut self) {
        let chosen = DEEDS.choose_weighted(&mut self.random, |(_, often)| *often);
        let (mut deed, _) = *chosen.expect("some deed is chosen at times");
        if self.pages.is_empty() && !matches!(deed, Deed::Invite | Deed::LogIn) {
            deed = Deed::New;
        }
        let nth = self.random.random_range(0..self.pages.len().max(1));
        if let Err(error) = self.act(deed, nth).await {
            if !error.is::<ErrorPage>() {
                self.reader.tally().untrue(&format!("{deed:?} by {}: {error:#}", self.name));
            }
            if nth < self.pages.len() {
                self.pages.remove(nth);
            }
        } else if self.pages.get(nth).is_some_and(|page| page.revisions.len() >= EDITS_MAX) {
            self.done.push(self.pages.remove(nth));
        }
    }

    /// Everything that was saved is there once, in the order in which it was saved.
    pub async fn read_back(&mut self) -> usize {
        let pages = [self.done.clone(), self.pages.clone()].concat();
        for page in &pages {
            if let Err(error) = self.check(page).await
                && !error.is::<ErrorPage>()
            {
                self.reader.tally().untrue(&format!("at the end, by {}: {error:#}", self.name));
            }
        }
        pages.iter().map(|page| page.revisions.len()).sum()
    }

    pub async fn log_in(&mut self) -> Result<()> {
        // As on another device.
        self.reader = self.reader.stranger();
        let path = "/index.php?title=Special:UserLogin";
        let page = self.reader.page(path).await?;
        let token = field(&page, "wpLoginToken").context("the login page has no token")?;
        let fields = [
            ("wpName", USER),
            ("wpPassword", PASSWORD),
            ("wpLoginToken", &*token),
            ("wpEditToken", "+\\"),
            ("authAction", "login"),
            ("wploginattempt", "Log in"),
        ];
        self.reader.post(path, &fields, &[302]).await?;
        let me = self.reader.json("/api.php?action=query&meta=userinfo&format=json").await?;
        ensure!(me["query"]["userinfo"]["name"] == USER, "logged in as {me}");
        Ok(())
    }

    async fn act(&mut self, deed: Deed, nth: usize) -> Result<()> {
        match deed {
            Deed::New => return self.begin_page().await,
            Deed::Invite => return self.invite().await,
            Deed::LogIn => return self.log_in().await,
            _ => {}
        }
        let page = self.pages[nth].clone();
        let changed = match deed {
            Deed::Edit => self.edit(page).await?,
            Deed::Api => self.append(page).await?,
            Deed::Undo => self.undo(page).await?,
            Deed::Move => self.move_page(page).await?,
            Deed::Search => return self.search(&page).await,
            _ => return self.look(&page).await,
        };
        // Also when it is not read back as it should be.
        self.pages[nth] = changed.clone();
        self.check(&changed).await
    }

    async fn begin_page(&mut self) -> Result<()> {
        self.made += 1;
        let word = format!("zebra{}{:05}", self.name.to_lowercase(), self.made);
        let mut page =
            Page { title: format!("{} {}", self.name, self.made), word: word.clone(), revisions: vec![] };
        let text = format!("== Begin ==\nA page about {word}, begun by {}.", self.name);
        self.save(&mut page, text, &[]).await?;
        self.pages.push(page.clone());
        self.check(&page).await
    }

    async fn edit(&mut self, mut page: Page) -> Result<Page> {
        let text = format!("{}\n\nMore on it: {}", page.text(), self.random.random::<u32>());
        self.save(&mut page, text, &[]).await?;
        Ok(page)
    }

    /// Through the page's form, as a person does; `with` as the link leads there.
    async fn save(&mut self, page: &mut Page, text: String, with: &[(&str, &str)]) -> Result<()> {
        let at = page.at();
        let asked = [&[("title", &*at), ("action", "edit")], with].concat();
        let html = self.reader.page(&format!("/index.php?{}", query(&asked))).await?;
        let shown = text_area(&html).context("the page to edit has no text area")?;
        // What an undo leads to is given; else it is what was saved last.
        let expected = if with.is_empty() { page.text() } else { &text };
        ensure!(shown.trim_end() == expected, "{} is given to edit as {shown:?}", page.title);
        let summary = format!("edit {} of {}", page.revisions.len(), page.word);
        let hidden = hidden_fields(&html, "editform");
        ensure!(!hidden.is_empty(), "the page to edit has no form");
        let mut fields: Vec<(&str, &str)> = hidden.iter().map(|(name, value)| (&**name, &**value)).collect();
        fields.extend([("wpTextbox1", &*text), ("wpSummary", &*summary), ("wpSave", "Save page")]);
        let path = format!("/index.php?{}", query(&[("title", &at), ("action", "submit")]));
        self.reader.post(&path, &fields, &[302]).await?;
        self.saved(page, summary, text);
        Ok(())
    }

    async fn append(&mut self, mut page: Page) -> Result<Page> {
        let token = self.reader.json("/api.php?action=query&meta=tokens&format=json").await?;
        let token = token["query"]["tokens"]["csrftoken"].as_str().context("no token")?.to_owned();
        let more = format!("\n* told by the API: {}", self.random.random::<u32>());
        let summary = format!("edit {} of {}", page.revisions.len(), page.word);
        let fields = [
            ("action", "edit"),
            ("title", &page.title),
            ("appendtext", &more),
            ("summary", &summary),
            ("format", "json"),
            ("token", &token),
        ];
        let answer = self.reader.post("/api.php", &fields, &[200]).await?;
        let said: Value = serde_json::from_slice(&answer.body)?;
        ensure!(said["edit"]["result"] == "Success", "the API answers {said}");
        let text = format!("{}{more}", page.text());
        self.saved(&mut page, summary, text);
        Ok(page)
    }

    /// Takes the last edit back, by the link in the history.
    async fn undo(&mut self, mut page: Page) -> Result<Page> {
        let history = self.history(&page).await?;
        let [.., before, last] = &*page.revisions else { return Ok(page) };
        if before.text == last.text {
            return Ok(page);
        }
        let link = between(&history, "undoafter=", "\"").context("the history has no undo")?;
        let link = unescaped(link);
        let (after, undo) = link.split_once("&undo=").context("an undo of nothing")?;
        let text = before.text.clone();
        self.save(&mut page, text, &[("undoafter", after), ("undo", undo)]).await?;
        Ok(page)
    }

    async fn history(&mut self, page: &Page) -> Result<String> {
        let at = page.at();
        let asked = [("title", &*at), ("action", "history")];
        self.reader.page(&format!("/index.php?{}", query(&asked))).await
    }

    async fn move_page(&mut self, mut page: Page) -> Result<Page> {
        let to = format!("{} on", page.title);
        let path = format!("/index.php?{}", query(&[("title", &format!("Special:MovePage/{}", page.at()))]));
        let token = field(&self.reader.page(&path).await?, "wpEditToken").context("no token to move")?;
        let reason = format!("edit {} of {}", page.revisions.len(), page.word);
        let fields = [
            ("wpNewTitleNs", "0"),
            ("wpNewTitleMain", &*to),
            ("wpOldTitle", &*page.title),
            ("wpReason", &*reason),
            ("wpEditToken", &*token),
            ("wpLeaveRedirect", "1"),
            ("wpMove", "Move page"),
        ];
        let said =
            self.reader.post("/index.php?title=Special:MovePage&action=submit", &fields, &[200]).await?;
        ensure!(said.text().contains("Move succeeded"), "{} is not moved to {to}", page.title);
        let old = self.raw(&page.title).await?;
        ensure!(old.trim_end() == format!("#REDIRECT [[{to}]]"), "{} is {old:?} after its move", page.title);
        let summary = format!("{USER} moved page [[{}]] to [[{to}]]: {reason}", page.title);
        page.title = to;
        let text = page.text().to_owned();
        self.saved(&mut page, summary, text);
        Ok(page)
    }

    fn saved(&self, page: &mut Page, summary: String, text: String) {
        self.reader.tally().edited();
        page.revisions.push(Revision { summary, text });
    }

    /// The text as it was saved last, and each revision once.
    async fn check(&mut self, page: &Page) -> Result<()> {
        let text = self.raw(&page.title).await?;
        ensure!(text.trim_end() == page.text(), "{} reads {text:?}, not {:?}", page.title, page.text());
        let asked = query(&[
            ("action", "query"),
            ("prop", "revisions"),
            ("titles", &page.title),
            ("rvprop", "comment"),
            ("rvdir", "newer"),
            ("rvlimit", "max"),
            ("format", "json"),
            ("formatversion", "2"),
        ]);
        let said = self.reader.json(&format!("/api.php?{asked}")).await?;
        let revisions = said["query"]["pages"][0]["revisions"].as_array();
        let revisions = revisions.with_context(|| format!("{} has no history: {said}", page.title))?;
        let found: Vec<&str> = revisions.iter().filter_map(|revision| revision["comment"].as_str()).collect();
        let expected: Vec<&str> = page.revisions.iter().map(|revision| &*revision.summary).collect();
        ensure!(found == expected, "{} has the history {found:?}, not {expected:?}", page.title);
        Ok(())
    }

    async fn raw(&mut self, title: &str) -> Result<String> {
        self.reader
            .page(&format!("/index.php?{}", query(&[("title", &title.replace(' ', "_")), ("action", "raw")])))
            .await
    }

    async fn search(&mut self, page: &Page) -> Result<()> {
        let asked = [("title", "Special:Search"), ("search", &*page.word), ("fulltext", "1")];
        let path = format!("/index.php?{}", query(&asked));
        let found = format!("title=\"{}\"", page.title);
        let reader = &self.reader;
        until(&format!("the search for {} to find {}", page.word, page.title), SEARCH_LIMIT, || async {
            Ok(reader.clone().page(&path).await?.contains(&found).then_some(()))
        })
        .await
    }

    /// As a visitor who is nobody's friend: the page, then its history.
    async fn look(&mut self, page: &Page) -> Result<()> {
        let mut visitor = self.reader.stranger();
        let html = visitor.page(&format!("/index.php?{}", query(&[("title", &page.at())]))).await?;
        ensure!(html.contains(&page.word), "a visitor does not see {}", page.title);
        let history = self.history(page).await?;
        let last = page.revisions.last().map_or("", |revision| &revision.summary);
        let last = last.rsplit("]]: ").next().unwrap_or_default();
        ensure!(history.contains(last), "the history of {} does not show {last:?}", page.title);
        Ok(())
    }

    async fn invite(&mut self) -> Result<()> {
        self.made += 1;
        let name = format!("Friend {} of {}", self.made, self.name);
        let path = "/index.php?title=Special:CreateAccount";
        let html = self.reader.page(path).await?;
        let token = field(&html, "wpCreateaccountToken").context("no token for an account")?;
        let fields = [
            ("wpName", &*name),
            ("wpPassword", PASSWORD),
            ("retype", PASSWORD),
            ("reason", "a friend"),
            ("wpCreateaccountToken", &*token),
            ("wpEditToken", "+\\"),
            ("authAction", "create"),
            ("wpCreateaccount", "Create account"),
        ];
        self.reader.post(path, &fields, &[200, 302]).await?;
        self.reader.tally().edited();
        let asked = query(&[("action", "query"), ("list", "users"), ("ususers", &name), ("format", "json")]);
        let said = self.reader.json(&format!("/api.php?{asked}")).await?;
        if !said["query"]["users"][0]["userid"].is_u64() {
            bail!("the account {name:?} is not there: {said}");
        }
        Ok(())
    }
}

impl Page {
    /// As addresses have it; other ones are answered with a redirect.
    fn at(&self) -> String {
        self.title.replace(' ', "_")
    }

    fn text(&self) -> &str {
        self.revisions.last().map_or("", |revision| &revision.text)
    }
}
