//! `kopek site create`: checks, packs and sends the files, has the site made, sends its dump.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use kopek_core::api::{CreateSite, SiteView};
use kopek_core::desired::{Database, Internet, Limits, Policy};
use kopek_core::{Bytes, Domain, ImageName, MilliCores, PoolName, SiteName};

use super::output::{say, spinner};
use super::site::{find, show};
use super::site_source::SourceArgs;
use super::upload::{send_dump, upload};
use super::{Fault, Global, Waiting};
use super::{site_check, site_config};

#[derive(Args)]
pub struct Create {
    name: SiteName,
    /// A host name that leads to the site; may be given several times
    #[arg(long = "domain", required = true)]
    domains: Vec<Domain>,
    #[command(flatten)]
    source: SourceArgs,
    #[arg(long, default_value = "php8.2-apache")]
    image: ImageName,
    /// An SQL dump to fill the database with
    #[arg(long, value_name = "FILE")]
    db_dump: Option<PathBuf>,
    /// The database as the site's configuration names it; read from wp-config.php or LocalSettings.php unless
    /// given
    #[arg(long)]
    db_name: Option<String>,
    #[arg(long)]
    db_user: Option<String>,
    #[arg(long, value_name = "FILE")]
    db_password_file: Option<PathBuf>,
    /// The pool that carries the database; without it, the one in service with the fewest sites and room
    #[arg(long)]
    pool: Option<PoolName>,
    #[arg(long, default_value_t = 1)]
    min: usize,
    #[arg(long, default_value_t = 4)]
    max: usize,
    /// Processor of one instance, in thousandths of a core
    #[arg(long, default_value_t = 1_000)]
    cpu: u32,
    /// Memory of one instance, in MiB
    #[arg(long, default_value_t = 512)]
    memory: u64,
    /// Instances cannot reach the internet
    #[arg(long)]
    no_internet: bool,
    #[command(flatten)]
    waiting: Waiting,
}

pub async fn create(global: &Global, create: Create) -> Result<()> {
    let cell = global.cell()?;
    site_check::check_names(&cell, &create.name, &create.domains, &create.image).await?;
    let packed = create.source.pack()?;
    site_check::check_room(&cell, &create.name, packed.tree.bytes, packed.size()?).await?;
    let found = site_config::database_in(packed.file.path())?;
    let database = database(&create, found)?;
    if let Some(database) = &database {
        database.check().map_err(|error| Fault::Usage(format!("site {}: {error}", create.name)))?;
    }
    if create.db_dump.is_some() && database.is_none() {
        return Err(Fault::Usage("--db-dump needs the site's database; give --db-user".to_owned()).into());
    }
    // Refused before anything moves.
    let dump = create.db_dump.as_deref().map(check_readable).transpose()?;
    if create.waiting.dry_run {
        let database = database.map_or("no database".to_owned(), |db| format!("database {}", db.name));
        return say(format_args!(
            "would create {} with {} files, {}, {database}",
            create.name, packed.tree.files, packed.tree.bytes
        ));
    }
    let tree = upload(&cell, packed.file.path(), &format!("site {}", create.name)).await?;
    let request = CreateSite {
        name: create.name.clone(),
        domains: create.domains,
        image: create.image,
        tree,
        database,
        pool: create.pool,
        min: create.min,
        max: create.max,
        policy: Policy::default(),
        limits: Limits {
            cpu: MilliCores(create.cpu),
            memory: Bytes::mib(create.memory),
            internet: if create.no_internet { Internet::Closed } else { Internet::Reachable },
            ..Limits::default()
        },
        has_dump: dump.is_some(),
    };
    let mut site: SiteView = cell.post("/sites", &request).await?;
    // One that was created before, with its dump, is not filled again.
    if let Some(dump) = dump.filter(|_| site.state == "preparing") {
        send_dump(&cell, &create.name, &dump).await?;
        site = find(&cell, &create.name).await?;
    }
    if let Some(limit) = create.waiting.limit() {
        let spinner = spinner(format!("site {}: waiting for its first instance", create.name));
        let path = format!("/sites/{}", create.name);
        let what = format!("site {} to run", create.name);
        let running =
            cell.wait_for(&path, limit, &what, |site: SiteView| (site.state == "running").then_some(site));
        let running = running.await;
        spinner.finish_and_clear();
        site = running?;
    }
    show(global, &site)
}

/// From the options, else from the site's own configuration.
fn database(create: &Create, found: Option<Database>) -> Result<Option<Database>> {
    let password = match &create.db_password_file {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read the password in {}", path.display()))?;
            Some(text.trim_end_matches(['\r', '\n']).to_owned())
        }
        None => None,
    };
    match (&create.db_user, found) {
        (None, None) if create.db_name.is_none() => Ok(None),
        (None, None) => {
            Err(Fault::Usage("--db-name needs --db-user and --db-password-file".to_owned()).into())
        }
        (None, Some(found)) => Ok(Some(Database {
            name: create.db_name.clone().unwrap_or(found.name),
            user: found.user,
            password: password.unwrap_or(found.password),
        })),
        (Some(user), found) => {
            let Some(password) = password.or_else(|| found.as_ref().map(|found| found.password.clone()))
            else {
                return Err(Fault::Usage("--db-user needs --db-password-file".to_owned()).into());
            };
            let name = create.db_name.clone().or_else(|| found.map(|found| found.name));
            Ok(Some(Database { name: name.unwrap_or_else(|| user.clone()), user: user.clone(), password }))
        }
    }
}

fn check_readable(path: &Path) -> Result<PathBuf> {
    std::fs::File::open(path).with_context(|| format!("cannot read the SQL dump {}", path.display()))?;
    Ok(path.to_owned())
}
