//! Trees are uploaded once, named by their BLAKE3 hash, to the active controller's server; `files` takes
//! them from there to every server that wants them.

use axum::Json;
use axum::body::Body;
use axum::http::StatusCode;
use kopek_core::api::{ImageView, RegisterImage, UploadedTree};
use kopek_core::desired::Image;
use kopek_core::{Bytes, Digest, Moment, keys};
use kopek_link::receive::receive;
use kopek_store::Op;
use serde::{Deserialize, Serialize};

use super::{Acting, Refused, committed};
use crate::active::Active;
use crate::state::put;

/// `PUT /trees`: a packed tree (tar.zst).
pub async fn upload(Acting(active): Acting, body: Body) -> Result<Json<UploadedTree>, Refused> {
    let folder = active.dirs.state.join("trees");
    let disk_error = |source: std::io::Error| {
        let error = format!("{} cannot store the upload in {}: {source}", active.me, folder.display());
        Refused::new(StatusCode::INSUFFICIENT_STORAGE, error)
    };
    tokio::fs::create_dir_all(&folder).await.map_err(disk_error)?;
    let draft = folder.join(format!(".upload-{:016x}", rand::random::<u64>()));
    let mut hasher = blake3::Hasher::new();
    let received = receive(body, draft, |piece| {
        hasher.update(piece);
    });
    let received = received.await.map_err(|error| {
        let told = format!("server {} cannot take the upload: {error}", active.me);
        Refused::new(StatusCode::INSUFFICIENT_STORAGE, told)
    })?;
    let bytes = received.bytes;
    let digest = Digest::parse(hasher.finalize().to_hex().as_str()).expect("a BLAKE3 hash is a digest");
    tokio::fs::rename(received.path(), active.dirs.packed_tree(&digest)).await.map_err(disk_error)?;
    let mut ops = vec![put(keys::tree(&digest), &Uploaded { at: active.now() })];
    let known = active.store.range(keys::TREES).await?;
    ops.extend(
        known
            .entries
            .into_iter()
            .filter(|entry| is_old(&entry.value, active.now()))
            .filter_map(|entry| (entry.key != keys::tree(&digest)).then_some(Op::Delete { key: entry.key })),
    );
    committed(active.commit(vec![], ops).await?)?;
    Ok(Json(UploadedTree { digest, bytes: Bytes(bytes) }))
}

/// Stored at `/trees/DIGEST`.
#[derive(Serialize, Deserialize)]
struct Uploaded {
    at: Moment,
}

/// `files` keeps a tree that nobody wants for an hour.
const UPLOAD_LIFE_MS: u64 = 60 * 60 * 1000;

fn is_old(value: &[u8], now: Moment) -> bool {
    serde_json::from_slice::<Uploaded>(value)
        .map_or(true, |uploaded| now.millis_since(uploaded.at) > UPLOAD_LIFE_MS)
}

pub async fn register(
    Acting(active): Acting,
    Json(image): Json<RegisterImage>,
) -> Result<Json<ImageView>, Refused> {
    require_tree(&active, &image.digest).await?;
    let RegisterImage { name, digest, bytes } = image;
    let image = Image { name: name.clone(), digest: digest.clone(), bytes };
    let known = active.view().state.desired.images.get(&name) == Some(&image);
    if !known {
        let event = active.event(&name, "image registered", format!("{bytes}, to be poured to every server"));
        committed(active.commit(vec![], vec![put(keys::image(&name), &image), event]).await?)?;
    }
    Ok(Json(ImageView { name, digest, bytes, servers: Vec::new() }))
}

pub async fn list(Acting(active): Acting) -> Json<Vec<ImageView>> {
    let view = active.view();
    let views = view.state.desired.images.values().map(|image| ImageView {
        name: image.name.clone(),
        digest: image.digest.clone(),
        bytes: image.bytes,
        servers: view
            .observed
            .servers
            .iter()
            .filter(|(_, seen)| seen.report.images.contains(&image.digest))
            .map(|(id, _)| id.clone())
            .collect(),
    });
    Json(views.collect())
}

/// A document may only name a tree that can be poured.
pub async fn require_tree(active: &Active, digest: &Digest) -> Result<(), Refused> {
    let state = &active.view().state;
    let in_use = state.desired.images.values().any(|image| image.digest == *digest)
        || state.desired.sites.values().any(|site| site.tree == *digest);
    if in_use || active.store.get(&keys::tree(digest)).await?.is_some() {
        return Ok(());
    }
    Err(Refused::unusable(format!("the tree {digest} was not uploaded to this cell; upload it first")))
}
