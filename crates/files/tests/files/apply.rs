use std::fs;
use std::os::unix::fs::{MetadataExt, fchown, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use kopek_core::Digest;
use kopek_files::{Applied, UnpackError, applied_tree, apply_volume};

use crate::words::*;

#[test]
fn a_deploy_keeps_uploads_and_removes_what_vanished() {
    let shelf = temp();
    let volume = shelf.path().join("volume");
    let one =
        tree(shelf.path(), &[("index.php", "1"), ("old/a.php", "a"), ("lib/b.php", "b"), ("same", "s")]);
    let two =
        tree(shelf.path(), &[("index.php", "2"), ("new/c.php", "c"), ("lib/b2.php", "b"), ("same", "s")]);
    apply_volume(&one.path, &one.digest, &volume).unwrap();
    assert_eq!(applied_tree(&volume).unwrap(), Some(one.digest));
    let live = volume.join("tree");
    fill(&live, &[("uploads/cat.jpg", "meow"), ("lib/own.php", "own")]);

    let applied = apply_volume(&two.path, &two.digest, &volume).unwrap();
    assert!(applied.removed == 2 && applied.displaced == 0, "{applied:?}");
    assert_eq!(applied_tree(&volume).unwrap(), Some(two.digest));
    assert_eq!(read(&live, "index.php").unwrap(), "2");
    assert_eq!(read(&live, "new/c.php").unwrap(), "c");
    assert_eq!(read(&live, "uploads/cat.jpg").unwrap(), "meow");
    assert_eq!(read(&live, "lib/own.php").unwrap(), "own");
    assert!(!live.join("old").exists(), "its folder was the deployment's and is empty");
    assert!(!live.join("lib/b.php").exists());
    assert!(!volume.join("incoming").exists());
}

#[test]
fn a_file_that_stays_gets_its_owner_mode_and_time_again() {
    let shelf = temp();
    let volume = shelf.path().join("volume");
    let one = tree(shelf.path(), &[("index.php", "1")]);
    apply_volume(&one.path, &one.digest, &volume).unwrap();
    let (live, before) = (volume.join("tree"), listing(&volume));
    let file = fs::File::open(live.join("index.php")).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    fchown(&file, Some(0), Some(0)).unwrap();
    set_mode(&live.join("index.php"), 0o600);
    assert_eq!(apply_volume(&one.path, &one.digest, &volume).unwrap(), Applied::default());
    assert_eq!(listing(&volume), before);
    assert_eq!(live.join("index.php").metadata().unwrap().uid(), 33);
}

#[test]
fn what_the_site_put_in_a_deploys_way_is_moved_out_of_the_tree() {
    let shelf = temp();
    let volume = shelf.path().join("volume");
    let one = tree(shelf.path(), &[("index.php", "1")]);
    let two =
        tree(shelf.path(), &[("index.php", "1"), ("cache", "a file now"), ("data/x", "x"), ("empty", "e")]);
    apply_volume(&one.path, &one.digest, &volume).unwrap();
    let live = volume.join("tree");
    fill(&live, &[("cache/page", "cached"), ("data", "a file"), ("empty/", "")]);
    let applied = apply_volume(&two.path, &two.digest, &volume).unwrap();
    assert_eq!(applied, Applied { written: 3, removed: 0, displaced: 2 });
    assert_eq!(read(&live, "cache").unwrap(), "a file now");
    assert_eq!(read(&live, "data/x").unwrap(), "x");
    let displaced = volume.join("displaced").join(two.digest.as_str());
    assert_eq!(read(&displaced, "0-cache/page").unwrap(), "cached");
    assert_eq!(read(&displaced, "1-data").unwrap(), "a file");
}

#[test]
fn hostile_links_in_the_live_tree_are_not_followed() {
    let (shelf, outside) = (temp(), temp());
    let volume = shelf.path().join("volume");
    let one =
        tree(shelf.path(), &[("index.php", "1"), ("wp/a.php", "1"), ("wp/old.php", "o"), ("x/y/gone", "g")]);
    let two = tree(shelf.path(), &[("index.php", "2"), ("wp/a.php", "2")]);
    apply_volume(&one.path, &one.digest, &volume).unwrap();
    fill(
        outside.path(),
        &[("a.php", "theirs"), ("old.php", "theirs"), ("index", "theirs"), ("y/gone", "theirs")],
    );
    set_mode(&outside.path().join("index"), 0o600);
    let live = volume.join("tree");
    for name in ["wp", "x"] {
        fs::remove_dir_all(live.join(name)).unwrap();
        symlink(outside.path(), live.join(name)).unwrap();
    }
    fs::remove_file(live.join("index.php")).unwrap();
    symlink(outside.path().join("index"), live.join("index.php")).unwrap();
    let before = listing(outside.path());

    let applied = apply_volume(&two.path, &two.digest, &volume).unwrap();
    assert_eq!(applied, Applied { written: 2, removed: 0, displaced: 1 });
    assert_eq!(listing(outside.path()), before);
    assert_eq!(read(&live, "wp/a.php").unwrap(), "2");
    assert_eq!(read(&live, "index.php").unwrap(), "2");
    assert!(!live.join("wp").is_symlink() && !live.join("index.php").is_symlink());
}

#[test]
fn a_fifo_in_the_live_tree_does_not_hold_up_a_deploy() {
    let shelf = temp();
    let volume = shelf.path().join("volume");
    let one = tree(shelf.path(), &[("index.php", "1")]);
    apply_volume(&one.path, &one.digest, &volume).unwrap();
    let live = volume.join("tree");
    fs::remove_file(live.join("index.php")).unwrap();
    nix::unistd::mkfifo(&live.join("index.php"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    apply_volume(&one.path, &one.digest, &volume).unwrap();
    assert_eq!(read(&live, "index.php").unwrap(), "1");
}

#[test]
fn a_damaged_packed_tree_changes_nothing() {
    let shelf = temp();
    let volume = shelf.path().join("volume");
    let one = tree(shelf.path(), &[("index.php", "1")]);
    let two = tree(shelf.path(), &[("index.php", "2")]);
    let error = apply_volume(&two.path, &one.digest, &volume).unwrap_err();
    assert!(matches!(error, UnpackError::Corrupt { .. }), "{error}");
    assert!(!volume.join("tree").exists());
    apply_volume(&one.path, &one.digest, &volume).unwrap();
    let before = listing(&volume);
    // Sound, but another tree than the one that is wanted.
    let error = apply_volume(&two.path, &one.digest, &volume).unwrap_err();
    assert!(matches!(error, UnpackError::Corrupt { .. }), "{error}");
    let mut bytes = fs::read(&two.path).unwrap();
    for at in [0, bytes.len() / 2, bytes.len() - 1] {
        bytes[at] ^= 1;
        fs::write(&two.path, &bytes).unwrap();
        let error = apply_volume(&two.path, &two.digest, &volume).unwrap_err();
        assert!(matches!(error, UnpackError::Corrupt { .. } | UnpackError::Io { .. }), "{error}");
    }
    assert_eq!(listing(&volume), before);
}

/// A small file system of its own.
struct Disk<'a>(&'a Path);

impl<'a> Disk<'a> {
    fn mount(path: &'a Path, size: &str) -> Disk<'a> {
        fs::create_dir_all(path).unwrap();
        let flags = nix::mount::MsFlags::empty();
        let options = format!("size={size}");
        nix::mount::mount(Some("kopek-test"), path, Some("tmpfs"), flags, Some(options.as_str())).unwrap();
        Disk(path)
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        nix::mount::umount2(self.0, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn a_full_disk_is_said_so_and_changes_nothing() {
    let (shelf, mount) = (temp(), temp());
    let disk = Disk::mount(mount.path(), "2m");
    let volume = mount.path().join("volume");
    let noise = |seed: u64| {
        let mut bytes = vec![0; 3 << 20];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    };
    let big = temp();
    fill(big.path(), &[("index.php", "2"), ("a/b", "b")]);
    fs::write(big.path().join("zz"), noise(1)).unwrap();
    let big = tree_of(shelf.path(), big.path());
    let small = tree(shelf.path(), &[("index.php", "1")]);

    let first = apply_volume(&big.path, &big.digest, &volume).unwrap_err();
    assert!(matches!(first, UnpackError::DiskFull { .. }), "{first}");
    assert!(listing(&volume).is_empty(), "{:?}", listing(&volume));
    apply_volume(&small.path, &small.digest, &volume).unwrap();
    let before = listing(&volume);
    let error = apply_volume(&big.path, &big.digest, &volume).unwrap_err();
    assert!(matches!(error, UnpackError::DiskFull { .. }), "{error}");
    assert_eq!(listing(&volume), before);
    drop(disk);
}

/// A tree whose deploy takes long enough to be caught in the middle.
fn large(shelf: &Path, version: &str) -> Tree {
    let source = tempfile::tempdir_in(shelf).unwrap();
    for number in 0..1500 {
        fill(source.path(), &[(&format!("{}/{number}.php", number % 40), &format!("{version} {number}"))]);
        fill(source.path(), &[(&format!("only-{version}/{number}.php"), version)]);
    }
    tree_of(shelf, source.path())
}

#[test]
fn a_deploy_that_was_killed_in_the_middle_is_repeated_wholly() {
    // In memory: 12,000 files, and a sync of each deploy.
    let shelf = tempfile::tempdir_in("/dev/shm").unwrap();
    let volume = shelf.path().join("volume");
    let [one, two, three] = ["one", "two", "three"].map(|version| large(shelf.path(), version));
    apply_volume(&one.path, &one.digest, &volume).unwrap();
    fill(&volume.join("tree"), &[("uploads/cat.jpg", "meow")]);

    kill_in_the_middle(&two, &volume);
    assert_eq!(applied_tree(&volume).unwrap(), None, "half a deploy is not reported as one");
    let live = volume.join("tree");
    apply_volume(&two.path, &two.digest, &volume).unwrap();
    check_large(&live, "two");

    // Killed, and then something else is deployed: nothing of the killed one stays.
    kill_in_the_middle(&one, &volume);
    apply_volume(&three.path, &three.digest, &volume).unwrap();
    check_large(&live, "three");
    assert_eq!(applied_tree(&volume).unwrap(), Some(three.digest));
}

fn check_large(live: &Path, version: &str) {
    assert_eq!(read(live, "uploads/cat.jpg").unwrap(), "meow");
    assert_eq!(read(live, "39/1479.php").unwrap(), format!("{version} 1479"));
    let tops: Vec<_> =
        fs::read_dir(live).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    let only: Vec<_> = tops.iter().filter(|top| top.starts_with("only-")).collect();
    assert_eq!(only, [&format!("only-{version}")]);
    assert_eq!(listing(live).len(), 3000 + 40 + 1 + 2);
}

fn kill_in_the_middle(tree: &Tree, volume: &Path) {
    let is_unfinished =
        || fs::read(volume.join("manifest")).is_ok_and(|text| text.starts_with(b"unfinished"));
    let mut child: Child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "apply::the_deploy_that_is_killed", "--ignored"])
        .env("KOPEK_TEST_PACKED", &tree.path)
        .env("KOPEK_TEST_DIGEST", tree.digest.as_str())
        .env("KOPEK_TEST_VOLUME", volume)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while !is_unfinished() {
        assert!(start.elapsed() < Duration::from_secs(60), "the deploy never began");
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(is_unfinished(), "the deploy was over before it could be killed");
}

#[test]
#[ignore = "runs only as the child of a_deploy_that_was_killed_in_the_middle_is_repeated_wholly"]
fn the_deploy_that_is_killed() {
    let var = |name: &str| std::env::var(name).unwrap();
    let digest = Digest::parse(&var("KOPEK_TEST_DIGEST")).unwrap();
    apply_volume(var("KOPEK_TEST_PACKED").as_ref(), &digest, var("KOPEK_TEST_VOLUME").as_ref()).unwrap();
}
