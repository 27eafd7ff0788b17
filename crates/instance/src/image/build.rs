//! Makes an image: mmdebstrap installs Debian packages into an empty tree and packs it, sorted and with
//! clamped times, and the stream is compressed, hashed and kept. Called by `kopek image build`.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use kopek_core::{Bytes, Digest, ImageName};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::recipe::{Recipe, known_images};

/// An image, packed: a tar archive with numeric owners, zstd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltImage {
    pub name: ImageName,
    /// BLAKE3 of the file at `packed`.
    pub digest: Digest,
    pub packed: PathBuf,
    /// Of that file.
    pub bytes: Bytes,
}

#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("there is no image {name}; known are {}", known())]
    Unknown { name: ImageName },
    #[error("cannot build image {name}: {}: {source}", .path.display())]
    Cache { name: ImageName, path: PathBuf, source: io::Error },
    #[error("cannot build image {name}: /etc/apt names no source of Debian {release}; add one")]
    NoSources { name: ImageName, release: String },
    #[error(
        "cannot build image {name}: this is not a Debian system (/etc/os-release has no VERSION_CODENAME)"
    )]
    NotDebian { name: ImageName },
    #[error("cannot build image {name}: {program} does not run; install {program} and build as root")]
    NoProgram { name: ImageName, program: &'static str, source: io::Error },
    #[error("cannot build image {name}: mmdebstrap failed: {message}")]
    Failed { name: ImageName, message: String },
}

fn known() -> String {
    known_images().iter().map(ImageName::as_str).collect::<Vec<_>>().join(", ")
}

/// Gives the image from the cache, or builds it there; `progress` gets a line for people with each step. A
/// cache entry is complete or absent, two builds of one image at a time become one, and what an interrupted
/// build left is removed by the next.
pub fn build_image(
    name: &ImageName,
    cache: &Path,
    progress: &mut dyn FnMut(&str),
) -> Result<BuiltImage, BuildError> {
    let recipe = Recipe::named(name).ok_or_else(|| BuildError::Unknown { name: name.clone() })?;
    let debian = Debian::of_this_machine().ok_or_else(|| BuildError::NotDebian { name: name.clone() })?;
    let entry = Entry::new(name, cache, &recipe, &debian);
    let failed = |source| BuildError::Cache { name: name.clone(), path: cache.to_owned(), source };
    if let Some(image) = entry.find() {
        return Ok(image);
    }
    std::fs::create_dir_all(cache).map_err(failed)?;
    let lock = File::create(cache.join(format!("{name}.lock"))).map_err(failed)?;
    let _held = Flock::lock(lock, FlockArg::LockExclusiveNonblock)
        .or_else(|(lock, _)| {
            progress("waiting for another build of this image");
            Flock::lock(lock, FlockArg::LockExclusive)
        })
        .map_err(|(_, errno)| failed(errno.into()))?;
    if let Some(image) = entry.find() {
        return Ok(image);
    }
    let workshop = Workshop::open(cache.join(format!("{name}.building"))).map_err(failed)?;
    let work = &workshop.path;
    prepare(&recipe, &debian, work).map_err(failed)?;
    if !work.join("apt.list").exists() && !work.join("apt.sources").exists() {
        return Err(BuildError::NoSources { name: name.clone(), release: debian.release });
    }
    let packed = work.join("packed");
    let (digest, bytes) = run(name, &recipe, &debian, work, &packed, progress)?;
    entry.keep(&packed, digest, bytes).map_err(failed)
}

/// The Debian that this server runs, and so the one that images hold.
struct Debian {
    /// For example `bookworm`.
    release: String,
    /// For example `12.11`: a point release makes new images.
    version: String,
}

impl Debian {
    fn of_this_machine() -> Option<Debian> {
        let release = std::fs::read_to_string("/etc/os-release").ok()?;
        let release = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))?.to_owned();
        let version = std::fs::read_to_string("/etc/debian_version").ok()?.trim().to_owned();
        Some(Debian { release, version })
    }
}

/// Where a finished image lies in the cache.
struct Entry {
    name: ImageName,
    packed: PathBuf,
    note: PathBuf,
}

/// Written last: an archive without its note does not count.
#[derive(Serialize, Deserialize)]
struct Note {
    digest: Digest,
    bytes: Bytes,
}

impl Entry {
    fn new(name: &ImageName, cache: &Path, recipe: &Recipe, debian: &Debian) -> Entry {
        let text = format!("{}\n{}\n{}", debian.release, debian.version, recipe.text());
        let key = blake3::hash(text.as_bytes()).to_hex();
        let stem = format!("{name}-{}", &key[..16]);
        Entry {
            name: name.clone(),
            packed: cache.join(format!("{stem}.tar.zst")),
            note: cache.join(format!("{stem}.json")),
        }
    }

    fn find(&self) -> Option<BuiltImage> {
        let note: Note = serde_json::from_slice(&std::fs::read(&self.note).ok()?).ok()?;
        let there = std::fs::metadata(&self.packed).is_ok_and(|file| file.len() == note.bytes.0);
        there.then(|| self.image(note))
    }

    fn keep(&self, built: &Path, digest: Digest, bytes: Bytes) -> io::Result<BuiltImage> {
        std::fs::rename(built, &self.packed)?;
        let note = Note { digest, bytes };
        let draft = self.note.with_extension("draft");
        std::fs::write(&draft, serde_json::to_vec(&note)?)?;
        std::fs::rename(draft, &self.note)?;
        Ok(self.image(note))
    }

    fn image(&self, note: Note) -> BuiltImage {
        BuiltImage {
            name: self.name.clone(),
            digest: note.digest,
            packed: self.packed.clone(),
            bytes: note.bytes,
        }
    }
}

/// The folder of one build; goes with it.
struct Workshop {
    path: PathBuf,
}

impl Workshop {
    fn open(path: PathBuf) -> io::Result<Workshop> {
        if path.exists() {
            std::fs::remove_dir_all(&path)?;
        }
        std::fs::create_dir_all(path.join("tmp"))?;
        Ok(Workshop { path })
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        // The next build would do it too.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Lays out what mmdebstrap is given: the files of the recipe, and how this server gets its own packages.
fn prepare(recipe: &Recipe, debian: &Debian, work: &Path) -> io::Result<()> {
    for (path, text) in &recipe.files {
        let file = work.join("files").join(path);
        std::fs::create_dir_all(file.parent().expect("it lies under the work folder"))?;
        std::fs::write(&file, text)?;
        let mode = if path.contains("bin/") { 0o755 } else { 0o644 };
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode))?;
    }
    let sources = Sources::read(Path::new("/etc/apt"), &debian.release);
    if !sources.lines.is_empty() {
        std::fs::write(work.join("apt.list"), sources.lines)?;
    }
    if !sources.stanzas.is_empty() {
        std::fs::write(work.join("apt.sources"), sources.stanzas)?;
    }
    std::fs::write(work.join("apt.conf"), apt_options())
}

/// The server's own package sources of its Debian release, in apt's two notations (sources.list(5)). Third
/// parties' sources are left out.
#[derive(Default)]
struct Sources {
    lines: String,
    stanzas: String,
}

impl Sources {
    fn read(etc_apt: &Path, release: &str) -> Sources {
        let mut files: Vec<PathBuf> = std::fs::read_dir(etc_apt.join("sources.list.d"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect();
        files.sort();
        files.insert(0, etc_apt.join("sources.list"));
        let mut sources = Sources::default();
        for file in files {
            let Ok(text) = std::fs::read_to_string(&file) else { continue };
            match file.extension().and_then(|extension| extension.to_str()) {
                Some("list") => sources.take_lines(&text, release),
                Some("sources") => sources.take_stanzas(&text, release),
                _ => {}
            }
        }
        sources
    }

    /// `deb [OPTIONS] URI SUITE COMPONENTS`
    fn take_lines(&mut self, text: &str, release: &str) {
        for line in text.lines().map(str::trim).filter(|line| line.starts_with("deb ")) {
            let rest = line.split_once(']').map_or(&line[4..], |(_, rest)| rest);
            if rest.split_ascii_whitespace().nth(1).is_some_and(|suite| belongs(suite, release)) {
                self.lines += &format!("{line}\n");
            }
        }
    }

    /// Stanzas of `Field: value`, an empty line between them.
    fn take_stanzas(&mut self, text: &str, release: &str) {
        let without_comments: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        for stanza in without_comments.join("\n").split("\n\n") {
            let field = |name: &str| {
                stanza.lines().find_map(|line| {
                    let (field, value) = line.split_once(':')?;
                    field.eq_ignore_ascii_case(name).then_some(value.trim())
                })
            };
            let suites = field("Suites").unwrap_or_default();
            let off = field("Enabled").is_some_and(|value| value.eq_ignore_ascii_case("no"));
            if !off && suites.split_ascii_whitespace().any(|suite| belongs(suite, release)) {
                self.stanzas += &format!("{}\n\n", stanza.trim());
            }
        }
    }
}

fn belongs(suite: &str, release: &str) -> bool {
    suite.strip_prefix(release).is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '/']))
}

/// How this server reaches its package sources: proxies, retries and credentials as apt here has them. They
/// are used while building and are not in the image.
fn apt_options() -> String {
    let dump =
        Command::new("apt-config").arg("dump").output().map(|output| output.stdout).unwrap_or_default();
    let wanted = ["Acquire::http", "Acquire::https", "Acquire::Retries", "Acquire::Check-Valid-Until"];
    let dump = String::from_utf8_lossy(&dump);
    let mut options: String = dump
        .lines()
        .filter(|line| wanted.iter().any(|name| line.starts_with(name)))
        .map(|line| format!("{line}\n"))
        .collect();
    options += "Dir::Etc::netrc \"/etc/apt/auth.conf\";\nDir::Etc::netrcparts \"/etc/apt/auth.conf.d\";\n";
    // Translations of package descriptions are of no use; apt's own user cannot read the cache's folder.
    options + "Acquire::Languages \"none\";\nAPT::Sandbox::User \"root\";\n"
}

/// Later times in the archive are set back to this, so that the same packages give the same archive.
/// 2023-11-14T22:13:20Z, after Debian 12's release.
const LATEST_TIME: &str = "1700000000";

/// Runs mmdebstrap and packs what comes out of it.
fn run(
    name: &ImageName,
    recipe: &Recipe,
    debian: &Debian,
    work: &Path,
    packed: &Path,
    progress: &mut dyn FnMut(&str),
) -> Result<(Digest, Bytes), BuildError> {
    let missing = |program| move |source| BuildError::NoProgram { name: name.clone(), program, source };
    Command::new("mmdebstrap").arg("--version").output().map_err(missing("mmdebstrap"))?;
    let mut child = mmdebstrap(recipe, debian, work).spawn().map_err(missing("unshare"))?;
    let archive = child.stdout.take().expect("stdout is piped");
    let target = packed.to_owned();
    let packer = std::thread::spawn(move || pack(archive, &target));
    let last_words = follow(&mut child, progress);
    let status = child.wait();
    let packed = packer.join().unwrap_or_else(|_| Err(io::Error::other("the packing thread panicked")));
    if !status.is_ok_and(|status| status.success()) {
        return Err(BuildError::Failed { name: name.clone(), message: last_words });
    }
    packed.map_err(|source| BuildError::Cache { name: name.clone(), path: work.to_owned(), source })
}

fn mmdebstrap(recipe: &Recipe, debian: &Debian, work: &Path) -> Command {
    // In process and mount namespaces of its own: when `unshare` dies, so does everything in there at once,
    // and what was mounted is gone. mmdebstrap by itself would finish installing first.
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "mmdebstrap"])
        .args(["--mode=root", "--variant=minbase", "--format=tar"])
        .arg(format!("--include={}", recipe.packages.join(",")))
        .arg(format!("--aptopt={}", work.join("apt.conf").display()))
        .arg("--dpkgopt=force-unsafe-io")
        .args(
            ["man/*", "info/*", "locale/*", "doc/*", "lintian/*"]
                .map(|what| format!("--dpkgopt=path-exclude=/usr/share/{what}")),
        )
        .arg("--dpkgopt=path-include=/usr/share/doc/*/copyright")
        // A container has its own /dev.
        .args(["--skip=output/dev", "--skip=output/mknod"])
        .arg(format!("--customize-hook=sync-in {} /", work.join("files").display()))
        .args(recipe.commands.iter().map(|shell| format!("--customize-hook={shell}")))
        .args([debian.release.as_str(), "-"])
        .args(["apt.list", "apt.sources"].map(|file| work.join(file)).iter().filter(|file| file.exists()))
        .env("SOURCE_DATE_EPOCH", LATEST_TIME)
        .env("TMPDIR", work.join("tmp"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    // SAFETY: between fork and exec only one system call is made.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        })
    };
    command
}

/// Fast, and within a tenth of what slow settings reach for such trees.
const ZSTD_LEVEL: i32 = 5;

fn pack(mut archive: impl Read, target: &Path) -> io::Result<(Digest, Bytes)> {
    let hashing = Hashing { file: File::create(target)?, hasher: blake3::Hasher::new(), bytes: 0 };
    let mut encoder = zstd::Encoder::new(hashing, ZSTD_LEVEL)?;
    // The result is the same for any number of workers, if there is at least one.
    encoder.multithread(std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32))?;
    io::copy(&mut archive, &mut encoder)?;
    let done = encoder.finish()?;
    done.file.sync_all()?;
    let digest = Digest::parse(&done.hasher.finalize().to_hex()).expect("BLAKE3 in hexadecimal is a digest");
    Ok((digest, Bytes(done.bytes)))
}

struct Hashing {
    file: File,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Write for Hashing {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        let written = self.file.write(part)?;
        self.hasher.update(&part[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Lines of a failed build that are worth showing.
const LAST_WORDS: usize = 8;

/// Hands mmdebstrap's steps on, and gives back its last lines.
fn follow(child: &mut Child, progress: &mut dyn FnMut(&str)) -> String {
    let mut last: VecDeque<String> = VecDeque::with_capacity(LAST_WORDS + 1);
    let stderr = child.stderr.take().expect("stderr is piped");
    for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        let line = line.trim();
        if let Some(step) = line.strip_prefix("I: ") {
            progress(step.trim_end_matches("..."));
        }
        if !line.is_empty() {
            last.push_back(line.to_owned());
            last.truncate(LAST_WORDS + 1);
        }
        if last.len() > LAST_WORDS {
            last.pop_front();
        }
    }
    Vec::from(last).join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sources_of_this_debian_are_taken() {
        let mut sources = Sources::default();
        sources.take_lines(
            "# deb http://a bookworm main\n\
             deb http://a bookworm main contrib\n\
             deb [signed-by=/k arch=amd64] http://b bookworm-security main\n\
             deb http://c trixie main\n\
             deb http://c bookwormy main\n\
             deb http://d cloud-sdk-bookworm main\n",
            "bookworm",
        );
        sources.take_stanzas(
            "Types: deb\n# a comment\nURIs: http://e\nSuites: bookworm bookworm-updates\nComponents: main\n\n\
             Types: deb\nURIs: http://f\nSuites: nodistro\n\n\
             Enabled: no\nTypes: deb\nURIs: http://g\nSuites: bookworm\n",
            "bookworm",
        );
        assert_eq!(
            sources.lines,
            "deb http://a bookworm main contrib\ndeb [signed-by=/k arch=amd64] http://b bookworm-security main\n"
        );
        assert_eq!(
            sources.stanzas,
            "Types: deb\nURIs: http://e\nSuites: bookworm bookworm-updates\nComponents: main\n\n"
        );
    }

    #[test]
    fn an_unknown_image_is_refused_with_the_known_ones() {
        let name = ImageName::parse("php9-caddy").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let error = build_image(&name, folder.path(), &mut |_| ()).unwrap_err();
        assert_eq!(error.to_string(), "there is no image php9-caddy; known are php8.2-apache, php8.2-nginx");
    }

    #[test]
    fn an_archive_without_its_note_does_not_count_nor_one_cut_short() {
        let folder = tempfile::tempdir().unwrap();
        let name = &known_images()[0];
        let debian = Debian { release: "bookworm".into(), version: "12.1".into() };
        let entry = Entry::new(name, folder.path(), &Recipe::named(name).unwrap(), &debian);
        let built = folder.path().join("built");
        let (digest, bytes) = pack(&b"some tree"[..], &built).unwrap();
        std::fs::copy(&built, &entry.packed).unwrap();
        assert_eq!(entry.find(), None);
        let kept = entry.keep(&built, digest, bytes).unwrap();
        assert_eq!(entry.find(), Some(kept));
        std::fs::write(&entry.packed, "cut").unwrap();
        assert_eq!(entry.find(), None);
    }

    #[test]
    fn packing_is_deterministic_and_the_digest_is_of_the_packed_file() {
        let folder = tempfile::tempdir().unwrap();
        let tree = vec![7; 3 << 20];
        let first = pack(&tree[..], &folder.path().join("a")).unwrap();
        assert_eq!(pack(&tree[..], &folder.path().join("b")).unwrap(), first);
        let file = std::fs::read(folder.path().join("a")).unwrap();
        assert_eq!(first.0.as_str(), blake3::hash(&file).to_hex().as_str());
        assert_eq!(first.1.0, file.len() as u64);
    }
}
