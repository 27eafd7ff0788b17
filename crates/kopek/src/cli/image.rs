//! `kopek image …`: building here, bringing to the cell.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Subcommand;
use kopek_core::ImageName;
use kopek_core::api::{ImageView, RegisterImage};
use kopek_instance::{BuiltImage, build_image};

use super::cell::Cell;
use super::output::{names, spinner};
use super::upload::upload;
use super::{Global, require_root};

/// Built images by content; safe to remove, they are built again.
pub const CACHE: &str = "/var/cache/kopek";

#[derive(Subcommand)]
pub enum ImageCommand {
    /// Build an image from Debian packages and bring it to every server
    Build {
        image: ImageName,
        /// Only build it into the cache of this machine
        #[arg(long)]
        local: bool,
        #[arg(long, default_value = CACHE)]
        cache: PathBuf,
    },
    /// List the images of the cell
    Ls,
}

pub async fn image(global: &Global, command: ImageCommand) -> Result<()> {
    match command {
        ImageCommand::Build { image, local, cache } => {
            require_root("kopek image build")?;
            let built = build(&image, &cache)?;
            if !local {
                bring(&global.cell()?, &built).await?;
            }
            let view =
                ImageView { name: built.name, digest: built.digest, bytes: built.bytes, servers: vec![] };
            global.format().one(&view, |image| {
                vec![
                    ("name", image.name.to_string()),
                    ("digest", image.digest.to_string()),
                    ("size", image.bytes.to_string()),
                ]
            })
        }
        ImageCommand::Ls => {
            let images: Vec<ImageView> = global.cell()?.get("/images").await?;
            global.format().list(&images, &["name", "size", "servers", "digest"], |image| {
                vec![
                    image.name.to_string(),
                    image.bytes.to_string(),
                    names(&image.servers),
                    image.digest.as_str()[..12].to_owned(),
                ]
            })
        }
    }
}

/// From the cache if it was built before.
pub fn build(image: &ImageName, cache: &Path) -> Result<BuiltImage> {
    let spinner = spinner(format!("image {image}"));
    let built = build_image(image, cache, &mut |step| spinner.set_message(format!("image {image}: {step}")));
    spinner.finish_and_clear();
    Ok(built?)
}

pub async fn bring(cell: &Cell, built: &BuiltImage) -> Result<()> {
    let known: Vec<ImageView> = cell.get("/images").await?;
    if known.iter().any(|image| image.digest == built.digest && image.name == built.name) {
        return Ok(());
    }
    upload(cell, &built.packed, &format!("image {}", built.name)).await?;
    let register =
        RegisterImage { name: built.name.clone(), digest: built.digest.clone(), bytes: built.bytes };
    let _: ImageView = cell.post("/images", &register).await?;
    Ok(())
}
