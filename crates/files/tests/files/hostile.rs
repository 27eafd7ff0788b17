//! Each kind of hostile or broken source is refused with one line that names the entry and the remedy, and
//! nothing is unpacked anywhere.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use kopek_core::{Bytes, Digest};
use kopek_files::{PackOptions, Symlinks, UnpackError, apply_volume, unpack_image};
use tar::EntryType;
use tempfile::TempDir;

use crate::words::*;

/// A tar of headers made by hand: libraries refuse to write what attackers write.
struct Tar(Vec<u8>);

impl Tar {
    fn new() -> Tar {
        Tar(Vec::new()).entry(EntryType::Regular, "index.php", "", b"<?php")
    }

    fn entry(mut self, kind: EntryType, path: &str, link: &str, content: &[u8]) -> Tar {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, path: &str) -> Tar {
        self.entry(EntryType::Regular, path, "", b"evil")
    }

    fn symlink(self, path: &str, target: &str) -> Tar {
        self.entry(EntryType::Symlink, path, target, b"")
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }

    fn on_disk(self) -> (TempDir, PathBuf) {
        on_disk(&self.end())
    }
}

fn on_disk(bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = temp();
    let path = folder.path().join("evil.tar");
    fs::write(&path, bytes).unwrap();
    (folder, path)
}

#[track_caller]
fn refused(tar: Tar, parts: &[&str]) {
    let (_folder, path) = tar.on_disk();
    let line = refusal(&path);
    for part in parts {
        assert!(line.contains(part), "{line:?} lacks {part:?}");
    }
}

#[test]
fn paths_that_leave_the_tree_are_refused() {
    refused(Tar::new().file("../evil"), &["\"../evil\"", "`..`", "pack again"]);
    refused(Tar::new().file("a/../../evil"), &["\"a/../../evil\"", "`..`"]);
    refused(Tar::new().file("/etc/passwd"), &["\"/etc/passwd\"", "absolute"]);
}

#[test]
fn device_nodes_and_their_like_are_refused() {
    refused(Tar::new().entry(EntryType::Char, "null", "", b""), &["\"null\"", "device node", "leave it out"]);
    refused(Tar::new().entry(EntryType::Block, "sda", "", b""), &["\"sda\"", "device node"]);
    refused(Tar::new().entry(EntryType::Fifo, "pipe", "", b""), &["\"pipe\"", "FIFO"]);
    refused(Tar::new().entry(EntryType::GNUSparse, "s", "", b""), &["\"s\"", "--sparse"]);

    let folder = temp();
    fill(folder.path(), &[("index.php", "x")]);
    let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("sock")).unwrap();
    assert!(refusal(folder.path()).contains("\"sock\" is a socket"));
}

#[test]
fn links_that_leave_the_tree_are_refused() {
    refused(Tar::new().symlink("x", "/etc/shadow"), &["\"x\"", "\"/etc/shadow\"", "leaves the tree"]);
    refused(Tar::new().symlink("a/x", "../../etc"), &["\"a/x\"", "leaves the tree"]);
    // Each looks harmless alone: d is the top, so d/../etc lies beside it.
    refused(
        Tar::new().symlink("p/q/d", "../..").symlink("p/q/e", "d/../etc"),
        &["\"p/q/e\"", "leaves the tree"],
    );
    refused(
        Tar::new().entry(EntryType::Link, "x", "/etc/shadow", b""),
        &["\"x\"", "hard link", "\"/etc/shadow\""],
    );
    refused(Tar::new().entry(EntryType::Link, "x", "../x", b""), &["\"x\"", "hard link"]);
}

#[test]
fn links_that_stay_within_are_taken() {
    let tar =
        Tar::new().symlink("a/b/up", "../../index.php").symlink("round", "round").symlink("gone", "no/such");
    let (_folder, path) = tar.on_disk();
    pack_bytes(&path, &options()).unwrap();
}

#[test]
fn writing_through_a_link_is_refused() {
    refused(
        Tar::new().symlink("up", "wp").entry(EntryType::Directory, "up", "", b"").file("up/evil"),
        &["\"up\"", "twice", "symbolic link", "folder"],
    );
    refused(
        Tar::new().symlink("up", "wp").file("up/evil"),
        &["\"up/evil\"", "no folder but a symbolic link"],
    );
    refused(Tar::new().file("f").symlink("f", "g"), &["\"f\"", "twice"]);
}

#[test]
fn names_with_nul_are_refused() {
    let record = b"18 path=evil\0.txt\n";
    refused(Tar::new().entry(EntryType::XHeader, "pax", "", &record[..]).file("x"), &["evil", "NUL"]);
}

#[test]
fn damaged_archives_are_refused() {
    let whole = Tar::new().entry(EntryType::Regular, "big", "", &[7; 9000]).end();
    let cut = |bytes: &[u8]| {
        let (_folder, path) = on_disk(&bytes[..bytes.len() / 2]);
        refusal(&path)
    };
    let zst = zstd::encode_all(&whole[..], 3).unwrap();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    gz.write_all(&whole).unwrap();
    let mut gz = gz.finish().unwrap();
    for line in [cut(&whole), cut(&zst), cut(&gz)] {
        assert!(line.contains("is corrupt") && line.ends_with("fetch or pack it again"), "{line}");
    }
    let middle = gz.len() / 2;
    gz[middle] ^= 1;
    let (_folder, path) = on_disk(&gz);
    assert!(refusal(&path).contains("is corrupt"), "a flipped bit is found by the sum at the end");

    let mut header = whole.clone();
    header[3] ^= 1;
    let (_folder, path) = on_disk(&header);
    assert!(refusal(&path).contains("wrong checksum"));
    let (_folder, path) = on_disk(b"hello");
    assert!(refusal(&path).contains("neither a folder nor a .zip"));
    assert!(refusal(Path::new("/no/such")).contains("cannot read /no/such"));
}

#[test]
fn a_damaged_or_hostile_zip_is_refused() {
    let make = |write: &dyn Fn(&mut zip::ZipWriter<fs::File>, zip::write::SimpleFileOptions)| {
        let folder = temp();
        let path = folder.path().join("a.zip");
        let mut zip = zip::ZipWriter::new(fs::File::create(&path).unwrap());
        write(
            &mut zip,
            zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored),
        );
        zip.finish().unwrap();
        (folder, path)
    };
    let (_folder, path) = make(&|zip, options| {
        zip.start_file("../evil", options).unwrap();
    });
    assert!(refusal(&path).contains("\"../evil\" its path has `..`"));
    let (_folder, path) = make(&|zip, options| zip.add_symlink("l", "/etc/shadow", options).unwrap());
    assert!(refusal(&path).contains("leaves the tree"));

    let (_folder, path) = make(&|zip, options| {
        zip.start_file("index.php", options).unwrap();
        zip.write_all(b"precious content").unwrap();
    });
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(8).position(|window| window == b"precious").unwrap();
    bytes[at] ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert!(refusal(&path).contains("is corrupt"));
    fs::write(&path, &bytes[..bytes.len() - 30]).unwrap();
    assert!(refusal(&path).contains("is corrupt"));
}

#[test]
fn bombs_end_at_the_limit() {
    let limited = |path: &Path| {
        let options = PackOptions::site(Symlinks::Within, Bytes::mib(1));
        pack_bytes(path, &options).unwrap_err().to_string()
    };
    let zeros = vec![0; 8 << 20];
    let zst =
        zstd::encode_all(&Tar::new().entry(EntryType::Regular, "zeros", "", &zeros).end()[..], 3).unwrap();
    let (_folder, path) = on_disk(&zst);
    assert!(limited(&path).contains("more than 1.0 MiB"), "{}", limited(&path));

    let folder = temp();
    let path = folder.path().join("bomb.zip");
    let mut zip = zip::ZipWriter::new(fs::File::create(&path).unwrap());
    zip.start_file("zeros", zip::write::SimpleFileOptions::default()).unwrap();
    zip.write_all(&zeros).unwrap();
    zip.finish().unwrap();
    assert!(limited(&path).contains("more than 1.0 MiB"));

    // A zip that lies about its sizes, in its directory and in the local header.
    let mut bytes = fs::read(&path).unwrap();
    let stated = (zeros.len() as u32).to_le_bytes();
    while let Some(at) = bytes.windows(4).position(|window| window == stated) {
        bytes[at..at + 4].copy_from_slice(&100u32.to_le_bytes());
    }
    fs::write(&path, &bytes).unwrap();
    assert!(limited(&path).contains("is corrupt"), "{}", limited(&path));

    // A long name that claims gigabytes.
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(8 << 30);
    header.set_cksum();
    let (_folder, path) = on_disk(header.as_bytes());
    assert!(limited(&path).contains("impossibly long name"));
}

#[test]
fn an_empty_source_is_refused() {
    let folder = temp();
    assert!(refusal(folder.path()).contains("holds no files"));
}

/// Packed trees come from the cell, and are looked at all the same.
fn packed(tar: Tar) -> (TempDir, PathBuf, Digest) {
    let bytes = zstd::encode_all(&tar.end()[..], 3).unwrap();
    let folder = temp();
    let path = folder.path().join("packed");
    fs::write(&path, &bytes).unwrap();
    let digest = Digest::parse(blake3::hash(&bytes).to_hex().as_str()).unwrap();
    (folder, path, digest)
}

#[test]
fn a_hostile_packed_tree_is_not_applied() {
    for tar in [
        Tar::new().file("../evil"),
        Tar::new().symlink("x", "/etc").file("x/evil"),
        Tar::new().entry(EntryType::Char, "null", "", b""),
    ] {
        let (folder, path, digest) = packed(tar);
        let volume = folder.path().join("volume");
        let error = apply_volume(&path, &digest, &volume).unwrap_err();
        assert!(matches!(error, UnpackError::Refused { .. }), "{error}");
        assert!(!volume.join("tree").exists());
    }
}

#[test]
fn an_image_cannot_write_through_its_links() {
    let outside = temp();
    let target = outside.path().to_str().unwrap();
    let (folder, path, digest) = packed(Tar::new().symlink("x", target).file("x/evil"));
    let root = folder.path().join("images/d/root");
    unpack_image(&path, &digest, &root).unwrap_err();
    assert!(!outside.path().join("evil").exists());
    assert!(!root.exists() && !folder.path().join("images/d/incoming").exists());
}

#[test]
fn an_image_keeps_owners_modes_and_absolute_links_and_loses_device_nodes() {
    use std::os::unix::fs::MetadataExt;
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |kind, path: &str, mode, uid, link: Option<&str>| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(uid);
        header.set_gid(uid + 1);
        header.set_mtime(1_000_000);
        header.set_size(0);
        match link {
            Some(target) => tar.append_link(&mut header, path, target).unwrap(),
            None => tar.append_data(&mut header, path, &[][..]).unwrap(),
        }
    };
    add(EntryType::Directory, "./", 0o755, 0, None);
    add(EntryType::Directory, "usr", 0o755, 0, None);
    add(EntryType::Regular, "usr/su", 0o4755, 0, None);
    add(EntryType::Regular, "usr/mail", 0o2755, 8, None);
    add(EntryType::Link, "usr/mailx", 0o2755, 8, Some("usr/mail"));
    add(EntryType::Symlink, "etc", 0o777, 0, Some("/usr/etc"));
    add(EntryType::Directory, "tmp", 0o1777, 0, None);
    add(EntryType::Directory, "dev", 0o755, 0, None);
    add(EntryType::Char, "dev/null", 0o666, 0, None);
    let bytes = zstd::encode_all(&tar.into_inner().unwrap()[..], 3).unwrap();
    let digest = Digest::parse(blake3::hash(&bytes).to_hex().as_str()).unwrap();
    let folder = temp();
    let (path, root) = (folder.path().join("packed"), folder.path().join("images/d/root"));
    fs::write(&path, &bytes).unwrap();

    let mut wrong = bytes.clone();
    wrong.push(0);
    let damaged = folder.path().join("damaged");
    fs::write(&damaged, wrong).unwrap();
    let error = unpack_image(&damaged, &digest, &root).unwrap_err();
    assert!(matches!(error, UnpackError::Corrupt { .. }), "{error}");
    assert!(!root.exists());

    unpack_image(&path, &digest, &root).unwrap();
    let meta = |name: &str| root.join(name).symlink_metadata().unwrap();
    let line = |name: &str| {
        let meta = meta(name);
        (meta.uid(), meta.gid(), meta.mode() & 0o7777)
    };
    assert_eq!(line("usr/su"), (0, 1, 0o4755));
    assert_eq!(line("usr/mail"), (8, 9, 0o2755));
    assert_eq!(line("tmp"), (0, 1, 0o1777));
    assert_eq!(line(""), (0, 1, 0o755));
    assert_eq!(meta("usr/mail").ino(), meta("usr/mailx").ino());
    assert_eq!(meta("usr").mtime(), 1_000_000);
    assert_eq!(fs::read_link(root.join("etc")).unwrap(), Path::new("/usr/etc"));
    assert!(!root.join("dev/null").exists());
}
