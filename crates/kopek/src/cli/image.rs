//! `kopek image …`: building here, bringing to the cell.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Subcommand;
use futures::TryStreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::StatusCode;
use hyper::body::Frame;
use indicatif::ProgressBar;
use kopek_core::api::{ImageView, RegisterImage, UploadedTree};
use kopek_core::{Bytes, Digest, ImageName};
use kopek_instance::{BuiltImage, build_image};
use kopek_link::http::ApiError;
use tokio_util::io::ReaderStream;

use super::cell::Cell;
use super::output::{bytes_bar, names, spinner};
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

/// Brings a packed tree to the active controller's server; again if control moves meanwhile.
pub async fn upload(cell: &Cell, packed: &Path, what: &str) -> Result<Digest> {
    let mut tries = 1;
    loop {
        match upload_once(cell, packed, what).await {
            Err(error) if tries < UPLOAD_TRIES && is_moved(&error) => tries += 1,
            other => return other,
        }
    }
}

const UPLOAD_TRIES: usize = 3;

fn is_moved(error: &anyhow::Error) -> bool {
    let status = match error.downcast_ref::<ApiError>() {
        Some(ApiError::Answered { status, .. }) => *status,
        Some(_) => return true,
        None => return false,
    };
    status == StatusCode::MISDIRECTED_REQUEST || status == StatusCode::CONFLICT
}

async fn upload_once(cell: &Cell, packed: &Path, what: &str) -> Result<Digest> {
    let file =
        tokio::fs::File::open(packed).await.with_context(|| format!("cannot read {}", packed.display()))?;
    let Bytes(length) = Bytes(file.metadata().await?.len());
    let bar = bytes_bar(length, what);
    let counted: ProgressBar = bar.clone();
    let stream = ReaderStream::with_capacity(file, 256 << 10).map_ok(move |piece| {
        counted.inc(piece.len() as u64);
        Frame::data(piece)
    });
    let answer = cell.send("/trees", StreamBody::new(stream)).await;
    bar.finish_and_clear();
    let text = answer?.into_body().collect().await?.to_bytes();
    let uploaded: UploadedTree = serde_json::from_slice(&text).context("the answer is not understood")?;
    Ok(uploaded.digest)
}
