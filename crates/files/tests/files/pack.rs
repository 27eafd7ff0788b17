use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use kopek_core::Bytes;
use kopek_files::{PackOptions, Symlinks, apply_volume, pack_source, volume_stats};
use proptest::prelude::*;

use crate::words::*;

#[derive(Debug, Clone)]
enum Thing {
    File(Vec<u8>, u32),
    Folder(u32),
    LinkTo(Vec<u8>),
    HardLinkTo(usize),
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => "[a-c]".prop_map(String::into_bytes),
        1 => "[ -.0-~äß\n]{1,12}".prop_map(String::into_bytes),
        1 => "x{120,200}".prop_map(String::into_bytes),
        1 => Just(b"\xff\xfe".to_vec()),
    ]
    .prop_filter("no path steps", |name| !matches!(&name[..], b"." | b".."))
}

fn thing() -> impl Strategy<Value = Thing> {
    prop_oneof![
        (prop::collection::vec(any::<u8>(), 0..1500), 0..0o1000u32).prop_map(|(b, m)| Thing::File(b, m)),
        (0..0o1000u32).prop_map(Thing::Folder),
        name().prop_map(Thing::LinkTo),
        any::<usize>().prop_map(Thing::HardLinkTo),
    ]
}

type Plan = Vec<(Vec<Vec<u8>>, Thing)>;

fn plan() -> impl Strategy<Value = Plan> {
    prop::collection::vec((prop::collection::vec(name(), 1..4), thing()), 1..25)
}

/// Makes what of the plan can be made; always at least one file.
fn build(folder: &Path, plan: &Plan) {
    fs::write(folder.join("always.php"), "<?php").unwrap();
    let mut files = vec![folder.join("always.php")];
    let mut folders = BTreeSet::new();
    for (names, thing) in plan {
        let path: PathBuf =
            names.iter().fold(folder.to_owned(), |path, name| path.join(std::ffi::OsStr::from_bytes(name)));
        if fs::create_dir_all(path.parent().unwrap()).is_err() || path.symlink_metadata().is_ok() {
            continue;
        }
        match thing {
            Thing::File(bytes, mode) => {
                fs::write(&path, bytes).unwrap();
                set_mode(&path, *mode);
                files.push(path);
            }
            Thing::Folder(mode) => {
                fs::create_dir(&path).unwrap();
                folders.insert((path, *mode));
            }
            Thing::LinkTo(target) => {
                std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(target), &path).unwrap();
            }
            Thing::HardLinkTo(index) => fs::hard_link(&files[index % files.len()], &path).unwrap(),
        }
    }
    for (path, mode) in folders {
        set_mode(&path, mode);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_packed_and_applied_is_the_same_tree(first in plan(), second in plan()) {
        let (one, two, shelf) = (temp(), temp(), temp());
        build(one.path(), &first);
        build(two.path(), &second);
        let (tree_one, tree_two) = (tree_of(shelf.path(), one.path()), tree_of(shelf.path(), two.path()));
        prop_assert_eq!(&tree_of(shelf.path(), one.path()).digest, &tree_one.digest);

        let volume = shelf.path().join("volume");
        let live = volume.join("tree");
        apply_volume(&tree_one.path, &tree_one.digest, &volume).unwrap();
        prop_assert_eq!(listing(&live), listing(one.path()));
        // A deploy over it: nothing of the first stays, since the site wrote nothing itself.
        apply_volume(&tree_two.path, &tree_two.digest, &volume).unwrap();
        let (mut got, mut wanted) = (listing(&live), listing(two.path()));
        // The times of folders that stay are the live tree's own.
        for listing in [&mut got, &mut wanted] {
            for line in listing.values_mut().filter(|line| line.starts_with("folder")) {
                *line = line.rsplit_once(' ').unwrap().0.to_owned();
            }
        }
        prop_assert_eq!(got, wanted);
        let again = apply_volume(&tree_two.path, &tree_two.digest, &volume).unwrap();
        prop_assert_eq!(again, Default::default());
    }
}

fn archive(command: &str, folder: &Path) {
    let done = Command::new("sh").args(["-c", command]).current_dir(folder).output().unwrap();
    assert!(done.status.success(), "{command}: {}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn a_folder_and_its_tar_archives_give_the_same_tree_whatever_they_are_called() {
    let folder = temp();
    let long = format!("{}/{}", "d".repeat(150), "f".repeat(150));
    fill(
        &folder.path().join("site"),
        &[
            ("index.php", "hello"),
            ("a/b.txt", "b"),
            ("a/empty/", ""),
            ("a/link", "-> ../index.php"),
            (&long, "long"),
        ],
    );
    fs::hard_link(folder.path().join("site/index.php"), folder.path().join("site/a/same.php")).unwrap();
    let (packed, _) = pack_bytes(&folder.path().join("site"), &options()).unwrap();
    assert_eq!((packed.files, packed.bytes, &packed.stripped), (4, Bytes(10), &None));
    for (name, command) in [
        ("a.tar", "tar -C site -cf a.tar ."),
        ("b.tar.gz", "tar -C site -czf b.tar.gz ."),
        ("c.zip", "tar -C site --zstd -cf c.zip ."),
        ("d", "tar -C site --format=posix -cf d --pax-option=exthdr.name=%d/PaxHeaders/%f ."),
        ("e.tgz", "tar -C site -cf - . | gzip -1 > e.tgz"),
    ] {
        archive(command, folder.path());
        let (from_archive, _) = pack_bytes(&folder.path().join(name), &options()).unwrap();
        assert_eq!(from_archive, packed, "{name}");
    }
}

#[test]
fn the_single_folder_around_an_archive_is_taken_away() {
    let folder = temp();
    fill(folder.path(), &[("wordpress/index.php", "hello"), ("wordpress/wp-admin/a.php", "a")]);
    let (bare, _) = pack_bytes(&folder.path().join("wordpress"), &options()).unwrap();
    archive("tar -czf wp.tar.gz wordpress", folder.path());
    let (stripped, _) = pack_bytes(&folder.path().join("wp.tar.gz"), &options()).unwrap();
    assert_eq!(stripped.stripped.as_deref(), Some("wordpress"));
    assert_eq!(stripped.digest, bare.digest);
    // Two things at the top: nothing to take away.
    fill(folder.path(), &[("index.html", "x")]);
    archive("tar -czf two.tar.gz wordpress index.html", folder.path());
    assert_eq!(pack_bytes(&folder.path().join("two.tar.gz"), &options()).unwrap().0.stripped, None);
}

#[test]
fn a_zip_keeps_modes_links_and_content() {
    use std::io::Write;
    let folder = temp();
    let path = folder.path().join("site.zip");
    let mut zip = zip::ZipWriter::new(fs::File::create(&path).unwrap());
    let options_of = |mode| zip::write::SimpleFileOptions::default().unix_permissions(mode);
    zip.add_directory("wordpress/", options_of(0o750)).unwrap();
    zip.start_file("wordpress/run.sh", options_of(0o755)).unwrap();
    zip.write_all(b"#!/bin/sh").unwrap();
    zip.add_symlink("wordpress/start", "run.sh", options_of(0o777)).unwrap();
    zip.start_file("wordpress/umlaut-ä.txt", options_of(0o600)).unwrap();
    zip.finish().unwrap();

    let tree = tree_of(folder.path(), &path);
    let volume = folder.path().join("volume");
    apply_volume(&tree.path, &tree.digest, &volume).unwrap();
    let live = volume.join("tree");
    assert_eq!(read(&live, "start").unwrap(), "#!/bin/sh");
    let mode = |name: &str| live.join(name).metadata().unwrap().mode() & 0o7777;
    assert_eq!((mode("run.sh"), mode("umlaut-ä.txt")), (0o755, 0o600));
    let meta = live.join("run.sh").metadata().unwrap();
    assert_eq!((meta.uid(), meta.gid()), (33, 33));
    assert_eq!(volume_stats(&live), (2, Bytes(9)));
}

#[test]
fn a_site_gets_no_set_user_id_bits() {
    let (folder, shelf) = (temp(), temp());
    fill(folder.path(), &[("index.php", "x")]);
    set_mode(&folder.path().join("index.php"), 0o4755);
    let tree = tree_of(shelf.path(), folder.path());
    apply_volume(&tree.path, &tree.digest, &shelf.path().join("v")).unwrap();
    assert_eq!(shelf.path().join("v/tree/index.php").metadata().unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn links_are_followed_on_request_so_that_debians_wordpress_stands_alone() {
    let (folder, elsewhere) = (temp(), temp());
    fill(elsewhere.path(), &[("lib/x.js", "x"), ("y.js", "y")]);
    fill(folder.path(), &[("index.php", "i")]);
    std::os::unix::fs::symlink(elsewhere.path().join("lib"), folder.path().join("lib")).unwrap();
    std::os::unix::fs::symlink(elsewhere.path().join("y.js"), folder.path().join("y.js")).unwrap();
    assert!(refusal(folder.path()).contains("--follow-links"));

    let follow = PackOptions::site(Symlinks::Follow, Bytes::mib(1));
    let (packed, bytes) = pack_bytes(folder.path(), &follow).unwrap();
    let (path, volume) = (elsewhere.path().join("packed"), elsewhere.path().join("v"));
    fs::write(&path, bytes).unwrap();
    apply_volume(&path, &packed.digest, &volume).unwrap();
    assert_eq!(read(&volume, "tree/lib/x.js").unwrap(), "x");
    assert!(!volume.join("tree/y.js").symlink_metadata().unwrap().is_symlink());

    fill(folder.path(), &[("loop", "-> .")]);
    let error = pack_bytes(folder.path(), &follow).unwrap_err().to_string();
    assert!(error.contains("\"loop\" is a link to nothing or to itself"), "{error}");
}

#[test]
fn progress_ends_at_the_total() {
    let folder = temp();
    fill(folder.path(), &[("a", "12345"), ("b", "678")]);
    let mut last = None;
    pack_source(folder.path(), &mut std::io::sink(), &options(), &mut |progress| last = Some(progress))
        .unwrap();
    let last = last.unwrap();
    assert_eq!((last.done, last.total), (Bytes(8), Bytes(8)));
}
