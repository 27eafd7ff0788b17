//! The command line: noun then verb. Data on stdout, messages on stderr; `--json` everywhere; exit codes 0
//! done, 1 failed, 2 usage, 3 timed out.

mod cell;
mod dev;
mod dev_up;
mod doctor;
mod image;
mod instance;
mod output;
mod pool;
mod server;
mod shown_lines;
mod site;
mod site_check;
mod site_config;
mod site_create;
mod site_db;
mod site_logs;
mod site_source;
mod upload;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::serve::{self, Service};
use cell::Cell;
use output::{Format, put, tell};

/// Hosts unmodified PHP + MySQL sites on ordinary Linux servers
#[derive(Parser)]
#[command(name = "kopek", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
pub struct Global {
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    /// The folder with an admin's certificate of the cell to speak to
    #[arg(long, global = true, env = "KOPEK_CELL")]
    cell: Option<PathBuf>,
}

impl Global {
    fn format(&self) -> Format {
        if self.json { Format::Json } else { Format::Table }
    }

    fn cell(&self) -> Result<Cell> {
        Cell::open(self.cell.as_deref())
    }
}

/// For commands that set something in motion.
#[derive(Args, Clone, Copy)]
pub struct Waiting {
    /// Return only when it is done
    #[arg(long)]
    wait: bool,
    /// Seconds to wait at most; exit code 3 when they have passed
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    timeout: u64,
    /// Say what would be done
    #[arg(long)]
    dry_run: bool,
}

impl Waiting {
    fn limit(&self) -> Option<Duration> {
        self.wait.then(|| Duration::from_secs(self.timeout))
    }
}

#[derive(Subcommand)]
enum Command {
    /// A rack of virtual servers on this machine
    #[command(subcommand)]
    Dev(dev::DevCommand),
    /// Sites: create, deploy, scale, look inside
    #[command(subcommand)]
    Site(site::SiteCommand),
    /// Running containers of sites
    #[command(subcommand)]
    Instance(instance::InstanceCommand),
    /// Root file systems of instances
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Servers of the cell
    #[command(subcommand)]
    Server(server::ServerCommand),
    /// Database pools
    #[command(subcommand)]
    Pool(pool::PoolCommand),
    /// Public addresses
    #[command(subcommand)]
    Vip(instance::VipCommand),
    /// What was decided and why
    Events(watch::Events),
    /// Servers and instances by load, refreshed
    Top(watch::Top),
    /// Check this machine and the cell
    Doctor,
    /// The cell as a whole
    #[command(subcommand)]
    Cell(server::CellCommand),
    /// Where the cell keeps its state
    #[command(subcommand)]
    Store(server::StoreCommand),
    /// Print a completion script for a shell
    Completion { shell: clap_complete::Shell },
    /// Run one of the processes of a server
    Run {
        service: Service,
        #[arg(long, default_value = "/etc/kopek/kopek.toml")]
        config: PathBuf,
    },
}

/// Failures that choose their own exit code.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("{0}")]
    Usage(String),
    #[error("waited {} s for {what}; it goes on, look again later", .limit.as_secs())]
    TimedOut { what: String, limit: Duration },
    /// A command inside an instance ended with this code.
    #[error("")]
    Exit(u8),
    /// Nobody reads our stdout any more: whoever did has what it wanted, so this counts as done.
    #[error("nobody reads the output any more")]
    ReaderLeft,
}

impl Fault {
    pub fn unknown(kind: &str, name: impl std::fmt::Display) -> Fault {
        Fault::Usage(format!("there is no {kind} {name}; `kopek {kind} ls` lists them"))
    }
}

pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() && error.kind() != HELP_INSTEAD => {
            tell(format_args!("kopek: {}", usage_line(&error.to_string())));
            return ExitCode::from(2);
        }
        // What was asked for on stdout, or help because nothing was.
        Err(help) => help.exit(),
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let fault = error.downcast_ref::<Fault>();
            match fault {
                Some(Fault::Exit(_) | Fault::ReaderLeft) => {}
                _ => tell(format_args!("kopek: {}", one_line(&error))),
            }
            match fault {
                Some(Fault::Exit(code)) => ExitCode::from(*code),
                Some(Fault::ReaderLeft) => ExitCode::SUCCESS,
                Some(Fault::Usage(_)) => ExitCode::from(2),
                Some(Fault::TimedOut { .. }) => ExitCode::from(3),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

const HELP_INSTEAD: clap::error::ErrorKind = clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;

/// What clap says over several lines, without its usage.
fn usage_line(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let said: Vec<&str> = lines
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .map(|line| line.trim_start_matches("error: "))
        .collect();
    format!("{}; --help tells more", said.join(" "))
}

/// What is wrong, then why. A cause that the message before it tells already is left out.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line.replace('\n', " ")
}

fn run(cli: Cli) -> Result<()> {
    let Cli { global, command } = cli;
    if let Command::Run { service, config } = command {
        return serve::serve(service, &config);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            Command::Dev(command) => dev::dev(&global, command).await,
            Command::Site(command) => site::site(&global, command).await,
            Command::Instance(command) => instance::instance(&global, command).await,
            Command::Image(command) => image::image(&global, command).await,
            Command::Server(command) => server::server(&global, command).await,
            Command::Pool(command) => pool::pool(&global, command).await,
            Command::Vip(command) => instance::vip(&global, command).await,
            Command::Events(events) => watch::events(&global, events).await,
            Command::Top(top) => watch::top(&global, top).await,
            Command::Doctor => doctor::doctor(&global).await,
            Command::Cell(command) => server::cell(&global, command).await,
            Command::Store(command) => server::store(&global, command).await,
            Command::Completion { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Cli::command(), "kopek", &mut script);
                put(&script)
            }
            Command::Run { .. } => unreachable!("services were started above"),
        }
    })
}

pub fn require_root(command: &str) -> Result<(), Fault> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(Fault::Usage(format!("{command} needs root; run it with sudo")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_usage_error_is_one_line() {
        let parse = |words: &[&str]| usage_line(&Cli::try_parse_from(words).err().unwrap().to_string());
        assert_eq!(
            parse(&["kopek", "site", "create", "blog"]),
            "the following required arguments were not provided: --domain <DOMAINS> --from <DIR|ARCHIVE>; --help tells more"
        );
        let unknown = parse(&["kopek", "site", "ls", "--jsn"]);
        assert!(unknown.contains("'--jsn'") && unknown.contains("'--json'"), "{unknown}");
        assert!(!unknown.contains('\n'));
    }

    #[test]
    fn loads_without_their_policy_are_not_passed_over() {
        let parse = |more: &[&str]| Cli::try_parse_from([&["kopek", "site", "scale", "blog"], more].concat());
        for option in ["--up", "--down"] {
            let refused = usage_line(&parse(&[option, "3"]).err().unwrap().to_string());
            assert!(refused.contains("--policy"), "{refused}");
            assert!(parse(&[option, "3", "--policy", "load"]).is_ok());
        }
        assert!(parse(&["--min", "2"]).is_ok());
        let refused = usage_line(&parse(&["--policy", "load", "--up", "-1"]).err().unwrap().to_string());
        assert!(refused.contains("-1"), "{refused}");
    }

    #[test]
    fn a_cause_is_told_once() {
        let cause = || std::io::Error::other("the disk is gone");
        let twice = Err::<(), _>(cause()).context("cannot read x: the disk is gone; mend it").unwrap_err();
        assert_eq!(one_line(&twice), "cannot read x: the disk is gone; mend it");
        let once = Err::<(), _>(cause()).context("cannot read x").unwrap_err();
        assert_eq!(one_line(&once), "cannot read x: the disk is gone");
    }
}
