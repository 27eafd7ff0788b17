//! An edge before one site without the rest of a cell, for bench/edge.sh: `alone PORT ORIGIN` serves ORIGIN's
//! pages for any of the two names `127.0.0.1` and `localhost` on PORT, through a gate's Unix socket.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use kopek_core::config::{Dirs, ServerConfig};
use kopek_core::part::{Backend, EdgePart, Intake, Route};
use kopek_core::{Domain, InstanceId, ServerId, SiteName};
use kopek_link::{CellAuthority, Csr, Identity, Parts, Welcome, read_preamble, send_welcome};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpStream, UnixListener};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let [port, origin] =
        std::env::args().skip(1).collect::<Vec<_>>().try_into().map_err(|_| "alone PORT ORIGIN")?;
    let origin: SocketAddr = origin.parse()?;
    let folder = tempfile::tempdir()?;
    let at = || folder.path().to_owned();
    let dirs = Dirs { etc: at(), state: at(), run: at(), log: at() };
    let beside = tokio::runtime::Runtime::new()?;
    let listener = beside.block_on(async { UnixListener::bind(dirs.gate_socket()) })?;
    beside.spawn(gate(listener, origin));
    let parts = beside.block_on(Parts::serve(&dirs))?;
    parts.publish(part()?);
    let text = format!("name = \"s1\"\naddress = \"127.0.0.1\"\ninterface = \"lo\"\nhttp_port = {port}\n");
    let config = ServerConfig::parse(&text, Path::new("kopek.toml"))?;
    kopek_edge::run(dirs, config, identity()?)?;
    Ok(())
}

async fn gate(listener: UnixListener, origin: SocketAddr) -> Option<()> {
    loop {
        let (mut stream, _) = listener.accept().await.ok()?;
        tokio::spawn(async move {
            read_preamble(&mut stream).await.ok()?;
            let mut origin = TcpStream::connect(origin).await.ok()?;
            origin.set_nodelay(true).ok()?;
            send_welcome(&mut stream, &Welcome::Open { bytes: None }).await.ok()?;
            copy_bidirectional(&mut stream, &mut origin).await.ok()
        });
    }
}

fn part() -> Result<EdgePart, kopek_core::id::IdError> {
    let (site, server) = (SiteName::parse("bench")?, ServerId::parse("s1")?);
    let backend =
        Backend { server: server.clone(), gate: SocketAddr::from(([127, 0, 0, 1], 1)), intake: Intake::Open };
    let route = Route {
        site: site.clone(),
        number: 1,
        domains: vec![Domain::parse("127.0.0.1")?, Domain::parse("localhost")?],
        backends: BTreeMap::from([(InstanceId::new(&site, 1), backend)]),
        writer: None,
    };
    Ok(EdgePart { server, routes: BTreeMap::from([(site, route)]) })
}

fn identity() -> Result<Identity, Box<dyn std::error::Error>> {
    let cell = CellAuthority::create("bench")?;
    let csr = Csr::new()?;
    let certificate = cell.issue_server(&csr.csr_pem, &ServerId::parse("s1")?, &[])?;
    Ok(Identity::from_pem(cell.ca_pem(), &certificate, &csr.key_pem)?)
}
