//! The launcher: our own binary again, as `kopek instance-launch`. It reads an `InstanceSpec` as JSON from
//! stdin, makes the container with libcontainer, writes a `Launched` as JSON to stdout and ends; the container
//! lives on without it. It exists because libcontainer clones: in a process with threads that can deadlock.
//! Only `start` runs it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, fchown};
use std::process::ExitCode;
use std::time::Instant;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};

use crate::cgroup::Hierarchies;
use crate::image::Launch;
use crate::mount::{IdShift, build_root};
use crate::spec::RUNNING_FILE;
use crate::{InstanceSpec, Running, container, process};

pub const SUBCOMMAND: &str = "instance-launch";

/// What the launcher answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Launched {
    /// The container runs; what each step took, in microseconds.
    Runs {
        running: Running,
        steps: Vec<(String, u64)>,
    },
    Failed {
        why: String,
    },
}

/// A launch that takes longer hangs. The kernel's alarm ends it then; the container does not inherit it.
const LAUNCH_LIMIT_S: u32 = 20;

/// The whole subcommand. The process must have one thread.
pub fn launch_main() -> ExitCode {
    // SAFETY: alarm takes an integer and has no other effect than a signal later.
    unsafe { libc::alarm(LAUNCH_LIMIT_S) };
    let answer = answer();
    let code = match &answer {
        Ok((_, Launched::Runs { .. })) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    };
    match answer {
        Ok((mut to, launched)) => {
            let _ = serde_json::to_writer(&mut to, &launched);
            let _ = to.flush();
        }
        Err(why) => eprintln!("kopek instance-launch: {why}; only `kopek agent` runs this"),
    }
    code
}

/// The errors of the first steps, before the answer has a way, are texts for people.
fn answer() -> Result<(File, Launched), String> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text).map_err(|error| error.to_string())?;
    let spec: InstanceSpec = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    // Stdout becomes the container's log: keep the way back apart. A clone closes itself on exec.
    let to = io::stdout().as_fd().try_clone_to_owned().map_err(|error| error.to_string())?;
    let launched = launch(&spec).unwrap_or_else(|why| Launched::Failed { why });
    Ok((File::from(to), launched))
}

fn launch(spec: &InstanceSpec) -> Result<Launched, String> {
    let mut steps = Steps::begin();
    let hierarchies = Hierarchies::of_this_machine().map_err(|error| error.to_string())?;
    let launch = Launch::read(&spec.image_root).map_err(|error| error.to_string())?;
    let netns = File::open(&spec.netns).map_err(|error| format!("{}: {error}", spec.netns.display()))?;
    setns(netns, CloneFlags::CLONE_NEWNET).map_err(|error| format!("{}: {error}", spec.netns.display()))?;

    let ids = IdShift::new(spec).map_err(|error| error.to_string())?;
    steps.done("user namespace");
    let root = build_root(spec, &ids).map_err(|error| error.to_string())?;
    steps.done("mounts");

    let config = container::config(spec, &launch, &root, ids.namespace(), &hierarchies);
    let bundle = spec.dir.join("bundle");
    std::fs::create_dir(&bundle)
        .and_then(|()| std::fs::write(bundle.join("config.json"), config.to_string()))
        .map_err(|error| format!("{}: {error}", bundle.display()))?;
    open_log(spec).map_err(|error| format!("{}: {error}", spec.log.display()))?;
    let mut container = ContainerBuilder::new(spec.id.to_string(), SyscallType::default())
        .with_root_path(spec.dir.join("runtime"))
        .and_then(|builder| builder.as_init(&bundle).with_systemd(false).with_detach(true).build())
        .map_err(|error| chain(&error))?;
    steps.done("container created");
    container.start().map_err(|error| chain(&error))?;
    steps.done("container started");

    let pid = container.pid().map(|pid| pid.as_raw());
    let (pid, started_at) = pid
        .and_then(|pid| Some((pid, process::started_at(pid)?)))
        .ok_or_else(|| format!("it ended at once; see {}", spec.log.display()))?;
    let running = Running {
        id: spec.id.clone(),
        dir: spec.dir.clone(),
        pid,
        started_at,
        stop_signal: launch.stop_signal,
    };
    write_running(&running).map_err(|error| format!("{}: {error}", spec.dir.display()))?;
    steps.done("noted");
    Ok(Launched::Runs { running, steps: steps.taken })
}

/// Puts the log behind stdout and stderr and nothing behind stdin; the container inherits all three. The log
/// belongs to the container's root, because web servers open /dev/stdout anew.
fn open_log(spec: &InstanceSpec) -> io::Result<()> {
    if let Some(folder) = spec.log.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let log = OpenOptions::new().create(true).append(true).open(&spec.log)?;
    log.set_permissions(PermissionsExt::from_mode(0o640))?;
    fchown(&log, Some(spec.first_id()), Some(spec.first_id()))?;
    nix::unistd::dup2_stdout(&log)?;
    nix::unistd::dup2_stderr(&log)?;
    nix::unistd::dup2_stdin(File::open("/dev/null")?)?;
    Ok(())
}

/// Complete or absent, for an agent that starts again meanwhile.
fn write_running(running: &Running) -> io::Result<()> {
    let path = running.dir.join(RUNNING_FILE);
    let draft = path.with_extension("draft");
    std::fs::write(&draft, serde_json::to_vec(running)?)?;
    std::fs::rename(&draft, &path)
}

/// libcontainer's errors say most in their sources.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let source_text = source.to_string();
        if !text.contains(&source_text) {
            text = format!("{text}: {source_text}");
        }
        next = source.source();
    }
    text
}

/// What took how long.
struct Steps {
    last: Instant,
    taken: Vec<(String, u64)>,
}

impl Steps {
    fn begin() -> Self {
        Steps { last: Instant::now(), taken: Vec::new() }
    }

    fn done(&mut self, step: &str) {
        self.taken.push((step.to_owned(), self.last.elapsed().as_micros() as u64));
        self.last = Instant::now();
    }
}
