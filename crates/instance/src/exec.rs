//! Running a command in an instance: our own binary again, as `kopek instance-exec`, single-threaded. It
//! enters the container's control groups and namespaces, gives up what the container's own processes have
//! given up, and becomes the command. libcontainer's way in would leave out the system call filter.

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use libcontainer::capabilities::drop_privileges;
use libcontainer::oci_spec::runtime::{LinuxCapabilities, LinuxSeccomp};
use libcontainer::seccomp::initialize_seccomp;
use libcontainer::syscall::syscall::create_syscall;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Gid, Uid, execvpe, fork, setgid, setgroups, setsid, setuid};

use crate::start::read_running;
use crate::{InstanceSpec, Running, cgroup, container, process, seccomp};

pub const SUBCOMMAND: &str = "instance-exec";

/// As whom a command runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// User 33, as PHP does.
    WwwData,
    /// User 0 of the container, with the few capabilities that its web server has.
    Root,
}

/// The shell's code for what could not be run at all; 125 so that it differs from 126 and 127, which a
/// shell inside gives.
const CANNOT_ENTER: u8 = 125;

/// A command that runs `argv` in the instance, in /var/www/html. The caller sets stdin, stdout and stderr
/// and spawns it (`tokio::process::Command::from` makes it asynchronous). Its exit code is that of the command
/// inside, 128 + signal if that was killed, 125 with a line on stderr if it could not be run. Killing it
/// kills the command inside.
pub fn exec_command(running: &Running, launcher: &Path, who: Who, argv: &[String]) -> Command {
    let mut command = Command::new(launcher);
    command.arg(SUBCOMMAND).arg(&running.dir).arg(match who {
        Who::WwwData => "www-data",
        Who::Root => "root",
    });
    command.args(argv);
    command
}

/// The whole subcommand: `instance-exec DIR WHO COMMAND…`. The process must have one thread.
pub fn exec_main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    match enter(arguments.collect()) {
        Ok(code) => ExitCode::from(code),
        Err(why) => {
            eprintln!("kopek: cannot run this in the instance: {why}");
            ExitCode::from(CANNOT_ENTER)
        }
    }
}

fn enter(arguments: Vec<OsString>) -> Result<u8, String> {
    let mut arguments = arguments.into_iter();
    let (Some(dir), Some(who)) = (arguments.next(), arguments.next()) else {
        return Err("only `kopek agent` runs this".to_owned());
    };
    let dir = PathBuf::from(dir);
    let who = if who == "root" { Who::Root } else { Who::WwwData };
    let argv: Vec<CString> =
        arguments.filter_map(|argument| CString::new(argument.into_vec()).ok()).collect();
    if argv.is_empty() {
        return Err("no command was given".to_owned());
    }

    let spec = InstanceSpec::read(&dir);
    let running = read_running(&dir);
    let process = running.as_ref().and_then(|running| process::open(running.pid, running.started_at));
    let (Some(spec), Some(process)) = (spec, process) else {
        return Err("it does not run".to_owned());
    };
    // What runs inside must not look into us through /proc or ptrace while we are neither here nor there. The
    // command that we become is as open as any.
    // SAFETY: prctl with plain integers.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
    cgroup::join(&spec.cgroup).map_err(|error| error.to_string())?;
    enter_namespaces(&process).map_err(|errno| match errno {
        Errno::ESRCH => {
            "it has just ended; repeat the command when `kopek instance ls` shows it serving".to_owned()
        }
        errno => format!("its namespaces refuse: {errno}"),
    })?;

    // SAFETY: this process has one thread, so the child may do whatever the parent may.
    match unsafe { fork() }.map_err(|errno| format!("no new process: {errno}"))? {
        ForkResult::Parent { child } => loop {
            match waitpid(child, None) {
                Ok(WaitStatus::Exited(_, code)) => return Ok(code as u8),
                Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128 + signal as u8),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(format!("its end was not seen: {errno}")),
            }
        },
        ForkResult::Child => match become_command(who, &argv) {
            Ok(never) => match never {},
            Err(why) => {
                eprintln!("kopek: {}: {why}", argv[0].to_string_lossy());
                // The parent hands this code on. 127 is a shell's for a command that is not there.
                std::process::exit(127)
            }
        },
    }
}

fn enter_namespaces(process: &OwnedFd) -> nix::Result<()> {
    // The network namespace first: it belongs to the server's user namespace, in which we still are.
    setns(process, CloneFlags::CLONE_NEWNET)?;
    setns(
        process,
        CloneFlags::CLONE_NEWUSER
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWCGROUP,
    )
}

/// In the child, which is in the process namespace: the same restrictions in the same order as libcontainer
/// sets them for the container's first process.
fn become_command(who: Who, argv: &[CString]) -> Result<Infallible, String> {
    let text = |errno: nix::errno::Errno| errno.to_string();
    let (user, home) = match who {
        Who::WwwData => (33, "/var/www"),
        Who::Root => (0, "/root"),
    };
    setsid().map_err(text)?;
    close_others();
    let capabilities: LinuxCapabilities =
        serde_json::from_value(container::capabilities()).map_err(|error| error.to_string())?;
    let filter: LinuxSeccomp =
        serde_json::from_value(seccomp::profile()).map_err(|error| error.to_string())?;

    setgroups(&[]).map_err(text)?;
    setgid(Gid::from_raw(user)).map_err(text)?;
    if who == Who::Root {
        setuid(Uid::from_raw(user)).map_err(text)?;
        drop_privileges(&capabilities, create_syscall().as_ref()).map_err(|error| error.to_string())?;
    } else {
        drop_privileges(&capabilities, create_syscall().as_ref()).map_err(|error| error.to_string())?;
        // A user other than root has no capability from here on.
        setuid(Uid::from_raw(user)).map_err(text)?;
    }
    // SAFETY: prctl with plain integers. The parent's death must reach us: it stands for whoever called.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    }
    std::env::set_current_dir("/var/www/html").map_err(|error| error.to_string())?;
    initialize_seccomp(&filter).map_err(|error| error.to_string())?;
    let environment = [
        c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
        c"LANG=C.UTF-8".to_owned(),
        CString::new(format!("HOME={home}")).expect("the two homes above have no NUL"),
    ];
    // The search goes by our own PATH.
    // SAFETY: this process has one thread.
    unsafe { std::env::set_var("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin") };
    execvpe(&argv[0], argv, &environment).map_err(text)
}

/// What else we have open leads out of the container.
fn close_others() {
    // SAFETY: marks descriptors of this process to be closed by exec; nothing here uses them before that.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
}
