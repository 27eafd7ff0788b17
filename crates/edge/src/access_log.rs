//! Each site's access log in combined format, `<log>/access/<site>.log`: one line per finished request.
//!
//! Workers collect lines without a lock and hand them over five times a second; one thread writes. A line is
//! always one line: what a client sends cannot begin another (control characters and quotes are escaped as
//! nginx does). When the disk stalls, lines are dropped and counted, requests never wait. Files that were
//! renamed or removed are made anew, for logrotate.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::header::HeaderValue;
use hyper::{Method, Uri, Version};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use kopek_core::SiteName;
use tracing::warn;

/// Batches under way to the writer: a stalled disk is bridged for some seconds.
const BATCHES_MAX: usize = 1_024;
/// Lines of one site that a worker keeps while the writer is behind.
const LINES_MAX_BYTES: usize = 1 << 20;
/// A worker hands lines over early from this size on.
const BATCH_BYTES: usize = 64 << 10;
/// Open files at most; the rest is opened per batch.
const FILES_MAX: usize = 256;

/// What a line tells.
pub struct Entry<'a> {
    pub client: IpAddr,
    /// When the request arrived.
    pub at: SystemTime,
    pub method: &'a Method,
    pub target: &'a Uri,
    pub version: Version,
    pub status: u16,
    /// Of the response's body.
    pub bytes: u64,
    pub referer: Option<&'a HeaderValue>,
    pub agent: Option<&'a HeaderValue>,
}

struct Batch {
    site: SiteName,
    lines: Vec<u8>,
}

/// One worker's side.
pub struct Lines {
    writer: SyncSender<Batch>,
    collected: RefCell<HashMap<SiteName, Vec<u8>>>,
    stamp: RefCell<Stamp>,
}

impl Lines {
    pub fn add(&self, site: &SiteName, entry: &Entry<'_>) {
        let mut collected = self.collected.borrow_mut();
        if !collected.contains_key(site) {
            collected.insert(site.clone(), Vec::with_capacity(4 << 10));
        }
        let lines = collected.get_mut(site).expect("inserted above");
        if lines.len() >= LINES_MAX_BYTES {
            return;
        }
        write_line(lines, entry, self.stamp.borrow_mut().of(entry.at));
        if lines.len() >= BATCH_BYTES {
            self.hand_over(site, lines);
        }
    }

    /// Called five times a second.
    pub fn flush(&self) {
        self.collected.borrow_mut().retain(|site, lines| {
            self.hand_over(site, lines);
            !lines.is_empty()
        });
    }

    fn hand_over(&self, site: &SiteName, lines: &mut Vec<u8>) {
        let batch = Batch { site: site.clone(), lines: std::mem::take(lines) };
        match self.writer.try_send(batch) {
            Ok(()) => {}
            Err(TrySendError::Full(batch)) => {
                if batch.lines.len() >= LINES_MAX_BYTES {
                    warn!(%site, "access log lines are being dropped: the disk does not keep up");
                }
                *lines = batch.lines;
            }
            Err(TrySendError::Disconnected(_)) => {}
        }
    }
}

/// `[22/Nov/2026:20:02:11 +0100]`, made once a second.
struct Stamp {
    zone: TimeZone,
    second: u64,
    text: String,
}

impl Stamp {
    fn of(&mut self, at: SystemTime) -> &str {
        let second = at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        if second != self.second || self.text.is_empty() {
            let time = Timestamp::from_second(second as i64).unwrap_or(Timestamp::UNIX_EPOCH);
            self.text = time.to_zoned(self.zone.clone()).strftime("[%d/%b/%Y:%H:%M:%S %z]").to_string();
            self.second = second;
        }
        &self.text
    }
}

fn write_line(line: &mut Vec<u8>, entry: &Entry<'_>, stamp: &str) {
    let Entry { client, method, target, version, status, bytes, .. } = entry;
    let to_memory = "writing to memory cannot fail";
    write!(line, "{client} - - {stamp} \"{method} ").expect(to_memory);
    let path = target.path_and_query().map_or("/", |path| path.as_str());
    escape(line, path.as_bytes());
    write!(line, " {version:?}\" {status} {bytes} \"").expect(to_memory);
    escape(line, entry.referer.map_or(b"-", HeaderValue::as_bytes));
    line.extend_from_slice(b"\" \"");
    escape(line, entry.agent.map_or(b"-", HeaderValue::as_bytes));
    line.extend_from_slice(b"\"\n");
}

fn escape(line: &mut Vec<u8>, text: &[u8]) {
    for &byte in text {
        match byte {
            b'"' | b'\\' | 0x00..=0x1f | 0x7f..=0xff => {
                write!(line, "\\x{byte:02X}").expect("writing to memory cannot fail");
            }
            _ => line.push(byte),
        }
    }
}

/// The writing thread. It ends when the last [`Lines`] is dropped.
pub struct Writer {
    lines: SyncSender<Batch>,
    zone: TimeZone,
    thread: JoinHandle<()>,
}

impl Writer {
    pub fn start(folder: PathBuf) -> io::Result<Writer> {
        std::fs::create_dir_all(&folder)?;
        let (lines, batches) = sync_channel(BATCHES_MAX);
        let thread = std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write_batches(&folder, &batches))?;
        Ok(Writer { lines, zone: TimeZone::system(), thread })
    }

    pub fn lines(&self) -> Lines {
        let stamp = Stamp { zone: self.zone.clone(), second: 0, text: String::new() };
        Lines { writer: self.lines.clone(), collected: RefCell::default(), stamp: RefCell::new(stamp) }
    }

    /// Waits until all that was handed over is written.
    pub fn finish(self) {
        drop(self.lines);
        if self.thread.join().is_err() {
            warn!("the access log's thread had panicked");
        }
    }
}

fn write_batches(folder: &Path, batches: &Receiver<Batch>) {
    let mut files = Files { folder: folder.to_owned(), open: HashMap::new() };
    while let Ok(batch) = batches.recv() {
        if let Err(error) = files.append(&batch) {
            warn!(site = %batch.site, %error, "access log lines are lost");
            // A full disk is not asked a thousand times a second.
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

struct Files {
    folder: PathBuf,
    open: HashMap<SiteName, File>,
}

impl Files {
    fn append(&mut self, batch: &Batch) -> io::Result<()> {
        let path = self.folder.join(format!("{}.log", batch.site));
        if self.open.get(&batch.site).is_some_and(|file| !is_at(file, &path)) {
            self.open.remove(&batch.site);
        }
        if self.open.len() >= FILES_MAX {
            self.open.clear();
        }
        if !self.open.contains_key(&batch.site) {
            std::fs::create_dir_all(&self.folder)?;
            let file = OpenOptions::new().create(true).append(true).mode(0o640).open(&path)?;
            self.open.insert(batch.site.clone(), file);
        }
        self.open.get_mut(&batch.site).expect("opened above").write_all(&batch.lines)
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(open), Ok(there)) => (open.dev(), open.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(zone: TimeZone) -> Stamp {
        Stamp { zone, second: 0, text: String::new() }
    }

    fn line(target: &str, referer: Option<&[u8]>, agent: Option<&[u8]>) -> String {
        let mut line = Vec::new();
        let value = |bytes: &[u8]| HeaderValue::from_bytes(bytes).unwrap();
        let (referer, agent) = (referer.map(value), agent.map(value));
        let entry = Entry {
            client: "192.0.2.7".parse().unwrap(),
            at: UNIX_EPOCH + Duration::from_secs(1_795_377_731),
            method: &Method::GET,
            target: &target.parse().unwrap(),
            version: Version::HTTP_11,
            status: 200,
            bytes: 5_120,
            referer: referer.as_ref(),
            agent: agent.as_ref(),
        };
        let zone = TimeZone::fixed(jiff::tz::offset(1));
        write_line(&mut line, &entry, stamp(zone).of(entry.at));
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn a_line_is_in_combined_format_with_local_time() {
        assert_eq!(
            line("/a?b=c", Some(b"http://x.org/"), Some(b"curl/8")),
            "192.0.2.7 - - [22/Nov/2026:21:02:11 +0100] \"GET /a?b=c HTTP/1.1\" 200 5120 \"http://x.org/\" \"curl/8\"\n"
        );
        assert!(line("/", None, None).ends_with(" \"-\" \"-\"\n"));
    }

    #[test]
    fn quotes_tabs_and_other_bytes_cannot_forge_a_line() {
        let forged = line("/", Some(b"\" 200 1 \"x"), Some(b"a\tb\\\xff"));
        assert!(forged.ends_with("\"\\x22 200 1 \\x22x\" \"a\\x09b\\x5C\\xFF\"\n"), "{forged}");
        assert_eq!(forged.matches('"').count(), 6);
    }

    #[test]
    fn a_file_grows_and_one_that_was_renamed_is_made_anew() {
        let folder = std::env::temp_dir().join(format!("kopek-access-log-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let mut files = Files { folder: folder.clone(), open: HashMap::new() };
        let site = SiteName::parse("blog").unwrap();
        // As an edge before this one left it.
        std::fs::write(folder.join("blog.log"), "zero\n").unwrap();
        let mut append = |text: &str| {
            files.append(&Batch { site: site.clone(), lines: text.as_bytes().to_vec() }).unwrap();
        };
        append("one\n");
        append("two\n");
        std::fs::rename(folder.join("blog.log"), folder.join("blog.log.1")).unwrap();
        append("three\n");
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
        assert_eq!((read("blog.log.1").as_str(), read("blog.log").as_str()), ("zero\none\ntwo\n", "three\n"));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
