//! How a server comes to be part of a cell: the first one founds it (`kopek cell init`), the others join with
//! a token (`kopek server join`). Both write `<etc>`: configuration, certificates, the store's location.
//! Called by the command line, on the server itself.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::Method;
use kopek_core::api::{Join, Joined};
use kopek_core::config::{CONTROL_PORT, STORE_PORT, ServerConfig};
use kopek_core::desired::{Cell, Server, Standing};
use kopek_core::keys;
use kopek_link::authority::{AuthorityError, CellAuthority, Csr};
use kopek_link::clock::now;
use kopek_link::dial::{DialError, fetch_ca};
use kopek_link::discovery::{self, DiscoveryError};
use kopek_link::http::{Api, ApiError};
use kopek_link::identity::{Identity, IdentityError};
use kopek_store::location::location_file;
use kopek_store::{Commit, Compare, Embedded, Location, Store, StoreError};
use tokio::time::{Instant, sleep};

use crate::api::servers::StoredAuthority;
use crate::state::put;
use crate::store_move::embedded_file;
use crate::token::{NotAToken, Token};

const JOIN_LIMIT: Duration = Duration::from_secs(15);
/// Control moves in at most 3 s, and a controller that was just started needs one to be elected.
const ACTIVE_LIMIT: Duration = Duration::from_secs(10);
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// Multicast on one network is answered in milliseconds; a controller may just be starting.
const FIND_LIMIT: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum FoundingError {
    #[error(
        "{0} exists: this server belongs to a cell already; `kopek server remove` it there, then remove that folder"
    )]
    Taken(PathBuf),
    #[error("{0} holds a cell that was never finished; remove that file and repeat the command")]
    HalfFounded(PathBuf),
    #[error("cannot write {path}: {source}")]
    Unwritable { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Token(#[from] NotAToken),
    #[error("no controller of that cell was found on this network: {0}; give its address")]
    NotFound(#[from] DiscoveryError),
    #[error("the controller does not say where the cell's store is: {0}; do both run the same version?")]
    Location(serde_json::Error),
    #[error("cannot join: {0}")]
    Dial(#[from] DialError),
    #[error("cannot join: {0}")]
    Refused(#[from] ApiError),
}

/// Makes a new cell with this server as its first, and an admin's certificate in `<etc>/admin`.
pub async fn found(config: &ServerConfig, config_file: &Path, cell: Cell) -> Result<(), FoundingError> {
    refuse_if_taken(config)?;
    let authority = CellAuthority::create(&cell.name)?;
    let csr = Csr::new()?;
    let certificate = authority.issue_server(&csr.csr_pem, &config.name, &[config.address])?;
    let server = Server {
        name: config.name.clone(),
        address: config.address,
        rack: config.rack.clone(),
        slots: config.slots(),
        standing: Standing::Up,
        joined: now(),
    };
    let stored = StoredAuthority { certificate: authority.ca_pem().to_owned(), key: authority.key_pem() };
    let ops = vec![
        put(keys::CELL.to_owned(), &cell),
        put(keys::AUTHORITY.to_owned(), &stored),
        put(keys::server(&config.name), &server),
    ];
    let file = embedded_file(&config.dirs);
    let store = Embedded::open(&file)?;
    // It holds the CA's key.
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600))
        .map_err(|source| FoundingError::Unwritable { path: file.clone(), source })?;
    let commit = store.commit(vec![Compare::Absent { key: keys::CELL.to_owned() }], ops).await?;
    if commit == Commit::Conflict {
        return Err(FoundingError::HalfFounded(file));
    }
    drop(store);
    issue_admin(&authority, &config.dirs.etc.join("admin"), &[config.address])?;
    let location = Location::Embedded {
        host: config.name.clone(),
        address: SocketAddr::new(config.address, STORE_PORT),
    };
    settle_in(config, config_file, authority.ca_pem(), &certificate, &csr.key_pem, &location)
}

/// Joins the cell that the token names, at `address` or wherever multicast finds it.
pub async fn join(
    config: &ServerConfig,
    config_file: &Path,
    address: Option<SocketAddr>,
    token: &str,
) -> Result<(), FoundingError> {
    refuse_if_taken(config)?;
    let token = Token::parse(token)?;
    let address = match address {
        Some(address) => address,
        None => discovery::find(&token.fingerprint, config.address, FIND_LIMIT).await?,
    };
    let ca = fetch_ca(address, &token.fingerprint, JOIN_LIMIT).await?;
    let csr = Csr::new()?;
    let request = Join {
        token: token.to_string(),
        name: config.name.clone(),
        address: config.address,
        rack: config.rack.clone(),
        slots: config.slots(),
        csr: csr.csr_pem.clone(),
    };
    let api = Api::anonymous(&ca)?;
    let joined = ask_to_join(&api, address, &request).await?;
    let location: Location = serde_json::from_value(joined.store).map_err(FoundingError::Location)?;
    settle_in(config, config_file, &joined.ca, &joined.certificate, &csr.key_pem, &location)
}

/// Whichever controller is active; while control moves, the one that becomes it.
async fn ask_to_join(api: &Api, known: SocketAddr, request: &Join) -> Result<Joined, ApiError> {
    let deadline = Instant::now() + ACTIVE_LIMIT;
    let mut control = known;
    loop {
        match api.call(Method::POST, control, "/join", Some(request), JOIN_LIMIT).await {
            // Nothing was done: the token is unspent.
            Err(error) if error.is_elsewhere() && Instant::now() < deadline => {
                control = error.active().unwrap_or(known);
            }
            answer => return answer,
        }
        sleep(ASK_AGAIN).await;
    }
}

/// An admin's key and certificate, with the addresses of controllers, in a folder of its own.
fn issue_admin(authority: &CellAuthority, folder: &Path, controls: &[IpAddr]) -> Result<(), FoundingError> {
    let unwritable = |source| FoundingError::Unwritable { path: folder.to_owned(), source };
    std::fs::create_dir_all(folder).map_err(unwritable)?;
    let csr = Csr::new()?;
    let certificate = authority.issue_admin(&csr.csr_pem, "root")?;
    Identity::write(folder, authority.ca_pem(), &certificate, &csr.key_pem)?;
    let controls: Vec<SocketAddr> =
        controls.iter().map(|address| SocketAddr::new(*address, CONTROL_PORT)).collect();
    let text = serde_json::to_vec(&controls).expect("addresses are plain JSON");
    std::fs::write(folder.join("controls.json"), text).map_err(unwritable)
}

fn refuse_if_taken(config: &ServerConfig) -> Result<(), FoundingError> {
    let path = location_file(&config.dirs.etc);
    if path.exists() { Err(FoundingError::Taken(path)) } else { Ok(()) }
}

/// The store's location comes last: with it the server belongs to the cell.
fn settle_in(
    config: &ServerConfig,
    config_file: &Path,
    ca: &str,
    certificate: &str,
    key: &str,
    location: &Location,
) -> Result<(), FoundingError> {
    Identity::write(&config.dirs.etc, ca, certificate, key)?;
    std::fs::write(config_file, config.to_toml())
        .map_err(|source| FoundingError::Unwritable { path: config_file.to_owned(), source })?;
    Ok(location.write(&location_file(&config.dirs.etc))?)
}
