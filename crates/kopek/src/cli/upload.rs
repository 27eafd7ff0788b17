//! Streams a file to the active controller, with a bar, and with its length: what there is no room for is
//! refused before it is sent. Called for packed trees and SQL dumps.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use anyhow::{Context as _, Result};
use futures::Stream;
use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::{Body, Bytes, Frame, SizeHint};
use indicatif::ProgressBar;
use kopek_core::api::UploadedTree;
use kopek_core::{Digest, SiteName};
use kopek_link::http::ApiError;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, Take};
use tokio_util::io::ReaderStream;

use super::cell::Cell;
use super::output::bytes_bar;

const UPLOAD_TRIES: usize = 3;
const PIECE: usize = 256 << 10;

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

fn is_moved(error: &anyhow::Error) -> bool {
    let status = match error.downcast_ref::<ApiError>() {
        Some(ApiError::Answered { status, .. }) => *status,
        Some(_) => return true,
        None => return false,
    };
    status == StatusCode::MISDIRECTED_REQUEST || status == StatusCode::CONFLICT
}

async fn upload_once(cell: &Cell, packed: &Path, what: &str) -> Result<Digest> {
    let body = SentFile::open(packed, what).await?;
    let text = cell.send("/trees", body).await?.into_body().collect().await?.to_bytes();
    let uploaded: UploadedTree = serde_json::from_slice(&text).context("the answer is not understood")?;
    Ok(uploaded.digest)
}

pub async fn send_dump(cell: &Cell, name: &SiteName, dump: &Path) -> Result<()> {
    let body = SentFile::open(dump, &format!("site {name}: SQL dump")).await?;
    cell.send(&format!("/sites/{name}/dump"), body).await.map(drop)
}

/// As long as it was when it was opened.
struct SentFile {
    pieces: ReaderStream<Take<File>>,
    left: u64,
    bar: ProgressBar,
}

impl SentFile {
    async fn open(path: &Path, what: &str) -> Result<SentFile> {
        let unreadable = || format!("cannot read {}", path.display());
        let file = File::open(path).await.with_context(unreadable)?;
        let left = file.metadata().await.with_context(unreadable)?.len();
        let pieces = ReaderStream::with_capacity(file.take(left), PIECE);
        Ok(SentFile { pieces, left, bar: bytes_bar(left, what) })
    }
}

impl Body for SentFile {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let piece = ready!(Pin::new(&mut self.pieces).poll_next(context));
        if let Some(Ok(piece)) = &piece {
            self.left -= piece.len() as u64;
            self.bar.inc(piece.len() as u64);
        }
        Poll::Ready(piece.map(|piece| piece.map(Frame::data)))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

impl Drop for SentFile {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
