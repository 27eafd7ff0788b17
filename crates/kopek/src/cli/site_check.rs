//! What would make `site create` fail, looked for before anything is packed or sent. The controller decides
//! again when it is asked: the cell may change in between.

use anyhow::{Result, bail};
use kopek_core::api::{ImageView, ServerView, SiteView};
use kopek_core::{Bytes, Domain, ImageName, SiteName};

use super::Fault;
use super::cell::Cell;

/// Refuses an image that the cell does not have and a domain that another site has.
pub async fn check_names(cell: &Cell, name: &SiteName, domains: &[Domain], image: &ImageName) -> Result<()> {
    let images: Vec<ImageView> = cell.get("/images").await?;
    if !images.iter().any(|known| known.name == *image) {
        return Err(Fault::unknown("image", image).into());
    }
    let sites: Vec<SiteView> = cell.get("/sites").await?;
    for other in sites.iter().filter(|other| other.name != *name) {
        if let Some(domain) = domains.iter().find(|domain| other.domains.contains(domain)) {
            bail!(
                "domain {domain} already belongs to site {}; give another --domain or delete that site",
                other.name
            );
        }
    }
    Ok(())
}

/// Refuses a tree that some server has no room for: each holder keeps it packed, to hand it on, and unpacked.
pub async fn check_room(cell: &Cell, name: &SiteName, unpacked: Bytes, packed: Bytes) -> Result<()> {
    let needs = Bytes(unpacked.0 + packed.0);
    let servers: Vec<ServerView> = cell.get("/servers").await?;
    // A server that has not reported to this controller yet says 0.
    let known = servers.iter().filter(|server| server.state == "up" && server.disk_free.0 > 0);
    match known.min_by_key(|server| server.disk_free) {
        Some(server) if server.disk_free < needs => bail!(
            "site {name} needs {needs} of disk on each server and {} has {} free; free some there, or leave files out",
            server.name,
            server.disk_free
        ),
        _ => Ok(()),
    }
}
