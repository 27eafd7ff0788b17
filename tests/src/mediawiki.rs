//! Debian's MediaWiki, unmodified: taken from its package and installed through its own web installer, as the owner
//! of a wiki does it. Called by `editors`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use hyper::Method;
use walkdir::WalkDir;

use crate::editors::reader::Reader;
use crate::html::{field, path_of, visible};

pub const PACKAGE: &str = "/usr/share/mediawiki";
/// Debian's own writable places, which the package leaves to the administrator to link.
const CACHE: &str = "/var/lib/mediawiki/cache";
pub const USER: &str = "Admin";
pub const PASSWORD: &str = "correct-horse-7";
const INSTALLER: &str = "/mw-config/index.php";

/// Copies the package with its links followed, so that the tree stands alone, in the shape of MediaWiki's own
/// archive: Debian's links in `extensions` lead to `extensions-core`, which nothing else names.
pub fn prepare(to: &Path) -> Result<PathBuf> {
    let tree = to.join("mediawiki");
    for (from, to) in [(PACKAGE, tree.clone()), (CACHE, tree.join("cache"))] {
        let parts = WalkDir::new(from).follow_links(true).into_iter();
        // A link to the configuration that is to be made.
        let parts = parts.filter_entry(|entry| entry.file_name() != "extensions-core");
        for entry in parts {
            let entry = match entry {
                Err(error) if error.path().is_some_and(|path| path.ends_with("LocalSettings.php")) => {
                    continue;
                }
                entry => entry.context("cannot read Debian's mediawiki; apt-get install mediawiki")?,
            };
            let path = to.join(entry.path().strip_prefix(from).expect("the walk is below it"));
            if entry.file_type().is_dir() {
                fs::create_dir_all(&path)?;
            } else {
                fs::copy(entry.path(), &path)
                    .with_context(|| format!("cannot copy {}", entry.path().display()))?;
            }
        }
    }
    Ok(tree)
}

/// What the owner types into the installer besides.
pub struct Database<'a> {
    pub name: &'a str,
    pub user: &'a str,
    pub password: &'a str,
}

/// What the owner adds: Debian's own default for the cache lies outside the tree; an error page is to say which error it
/// is, and errors after an answer was given are to be known too.
pub const OWN_SETTINGS: &str = "
$wgCacheDirectory = \"$IP/cache\";
$wgShowExceptionDetails = true;
$wgDBerrorLog = \"$IP/cache/database.log\";
$wgDebugLogGroups['exception'] = \"$IP/cache/exceptions.log\";
";
/// Where these errors are, for a shell in the instance.
pub const TOLD: &str =
    "cat /var/www/html/cache/database.log /var/www/html/cache/exceptions.log 2>/dev/null || true";

/// Goes through the installer's pages up to the one that makes the tables.
pub async fn begin_install(owner: &mut Reader, title: &str, database: &Database<'_>) -> Result<()> {
    let first = owner.page(INSTALLER).await?;
    let time = field(&first, "LanguageRequestTime").context("the installer has no first page")?;
    next(owner, "Language", &[("uselang", "en"), ("ContLang", "en"), ("LanguageRequestTime", &time)]).await?;
    let welcome = next(owner, "Welcome", &[]).await?;
    ensure!(welcome.contains("mysql_wgDBserver"), "the installer asks for no database");
    let asked = [
        ("DBType", "mysql"),
        ("mysql_wgDBserver", "localhost"),
        ("mysql_wgDBname", database.name),
        ("mysql_wgDBprefix", ""),
        ("mysql__InstallUser", database.user),
        ("mysql__InstallPassword", database.password),
    ];
    next(owner, "DBConnect", &asked).await?;
    next(owner, "DBSettings", &[("mysql__SameAccount", "1")]).await?;
    let named = [
        ("config_wgSitename", title),
        ("config__NamespaceType", "site-name"),
        ("config_wgMetaNamespace", "MyWiki"),
        ("config__AdminName", USER),
        ("config__AdminPassword", PASSWORD),
        ("config__AdminPasswordConfirm", PASSWORD),
        ("config__AdminEmail", ""),
        ("config__SkipOptional", "skip"),
    ];
    let ready = next(owner, "Name", &named).await?;
    ensure!(ready.contains("page=Install"), "the installer is not ready: {}", complaint(&ready));
    Ok(())
}

/// Has the tables made; gives the LocalSettings.php that the owner is to upload.
pub async fn make_tables(owner: &mut Reader) -> Result<String> {
    let made = next(owner, "Install", &[]).await?;
    ensure!(made.contains("Database was successfully set up"), "the installer says: {}", complaint(&made));
    next(owner, "Install", &[]).await?;
    let settings = owner.page(&format!("{INSTALLER}?localsettings=1")).await?;
    ensure!(settings.contains("$wgDBname"), "the installer gives no LocalSettings.php");
    Ok(settings)
}

/// A page's form is answered with redirects to the next page that has something to ask, or with the same page and a
/// complaint.
async fn next(owner: &mut Reader, page: &str, fields: &[(&str, &str)]) -> Result<String> {
    let fields = [fields, &[("submit-continue", "Continue →")]].concat();
    let mut answer = owner.post(&format!("{INSTALLER}?page={page}"), &fields, &[200, 302]).await?;
    // The page that makes the tables shows itself while it does.
    if answer.status == 200 && page != "Install" {
        bail!("the installer's page {page} says: {}", complaint(&answer.text()));
    }
    while answer.status == 302 {
        let to = path_of(answer.location().with_context(|| format!("{page} leads nowhere"))?)?;
        answer = owner.ask(Method::GET, &to, &[], Bytes::new(), &[200, 302]).await?;
    }
    Ok(answer.text())
}

/// What an installer's page says is wrong.
fn complaint(html: &str) -> String {
    let said = html.find("error").map_or(html, |at| &html[at..]);
    visible(said)
}
