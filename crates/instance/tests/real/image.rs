//! Images are really built, from this machine's own Debian sources.

use std::path::Path;
use std::time::{Duration, Instant};

use kopek_instance::build_image;
use kopek_instance::image::known_images;

use crate::support;

#[test]
fn images_have_the_modules_that_unmodified_sites_ask_for() {
    let wanted = [
        "mysqli",
        "pdo_mysql",
        "gd",
        "intl",
        "mbstring",
        "xml",
        "curl",
        "zip",
        "Zend OPcache",
        "apcu",
        "imagick",
        "bcmath",
        "soap",
    ];
    for image in known_images() {
        let root = support::unpacked(image.as_str());
        let modules = support::run(&format!("chroot {} php -m", root.display()));
        for module in wanted {
            assert!(modules.lines().any(|line| line == module), "{image} lacks {module}: {modules}");
        }
        let settings = support::run(&format!(
            "chroot {} php -r 'echo ini_get(\"mysqli.default_socket\"), \" \", ini_get(\"upload_max_filesize\");'",
            root.display()
        ));
        assert_eq!(settings, "/run/mysqld/mysqld.sock 64M", "{image}");
    }
}

#[test]
fn a_repeated_build_answers_at_once_and_leaves_no_mount_and_no_workshop() {
    let cache = Path::new("/var/cache/kopek");
    for image in known_images() {
        let first = build_image(&image, cache, &mut |_| ()).unwrap();
        let begun = Instant::now();
        let again = build_image(&image, cache, &mut |step| panic!("built again: {step}")).unwrap();
        assert!(begun.elapsed() < Duration::from_millis(200), "{:?}", begun.elapsed());
        assert_eq!(again, first);
        let hash = blake3::Hasher::new()
            .update_reader(std::fs::File::open(&first.packed).unwrap())
            .unwrap()
            .finalize();
        assert_eq!(hash.to_hex().as_str(), first.digest.as_str());
        assert!(!cache.join(format!("{image}.building")).exists());
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains("/var/cache/kopek"), "{mounts}");
}

#[test]
fn an_image_holds_nothing_of_how_this_server_gets_its_packages() {
    for image in known_images() {
        let root = support::unpacked(image.as_str());
        let apt = root.join("etc/apt");
        for folder in ["apt.conf.d", "sources.list.d", "auth.conf.d"] {
            for entry in std::fs::read_dir(apt.join(folder)).into_iter().flatten().flatten() {
                let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
                assert!(!text.contains("://"), "{}: {text}", entry.path().display());
            }
        }
        assert!(!apt.join("sources.list").exists());
    }
}

#[test]
fn a_build_that_is_killed_leaves_no_mount_and_the_next_one_begins_anew() {
    let cache = tempfile::tempdir().unwrap();
    let image = &known_images()[0];
    let mut build = std::process::Command::new(support::launcher())
        .args(["build", image.as_str()])
        .arg(cache.path())
        .spawn()
        .unwrap();
    let workshop = cache.path().join(format!("{image}.building"));
    support::until("something is being installed", || {
        let mut trees = std::fs::read_dir(workshop.join("tmp")).into_iter().flatten().flatten();
        trees.any(|tree| tree.path().join("usr/bin").exists())
    });
    build.kill().unwrap();
    build.wait().unwrap();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains("mmdebstrap"), "{mounts}");
    let in_cache = |suffix: &str| {
        std::fs::read_dir(cache.path())
            .unwrap()
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().ends_with(suffix))
            .count()
    };
    assert_eq!((in_cache(".json"), in_cache(".tar.zst")), (0, 0));
    support::until("nothing works there any more", || {
        support::run("cat /proc/[0-9]*/cmdline | tr '\\0' ' '").matches(&*workshop.to_string_lossy()).count()
            == 0
    });
}
