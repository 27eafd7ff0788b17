//! The vocabulary of tests: `rack().server("a", 4).site("shop", 2)`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use kopek_core::desired::{
    Cell as Settings, Database, Desired, Image, Limits, Policy, Pool, Server, Site, Standing,
};
use kopek_core::{Bytes, Digest, Domain, ImageName, Moment, PoolName, ServerId, SiteName};

use crate::cell::Cell;

const IMAGE: &str = "php8.2-apache";

/// What people asked for, before anything runs.
#[derive(Debug, Clone)]
pub struct Rack {
    pub desired: Desired,
    pub seed: u64,
}

pub fn rack() -> Rack {
    let name = image();
    let image = Image { name: name.clone(), digest: digest("image", 1), bytes: Bytes::mib(335) };
    let vips = (1..=2u8).map(|n| IpAddr::V4(Ipv4Addr::new(10, 0, 1, n))).collect::<BTreeSet<_>>();
    let desired = Desired {
        cell: Settings { vips, ..Settings::default() },
        images: BTreeMap::from([(name, image)]),
        ..Desired::default()
    };
    Rack { desired, seed: 1 }
}

impl Rack {
    pub fn server(self, name: &str, slots: usize) -> Rack {
        self.server_in("r1", name, slots)
    }

    pub fn server_in(mut self, rack: &str, name: &str, slots: usize) -> Rack {
        let nth = self.desired.servers.len();
        let name = server(name);
        let entry = Server {
            name: name.clone(),
            address: IpAddr::from([10, 0, (nth / 250) as u8, (nth % 250) as u8 + 11]),
            rack: rack.to_owned(),
            slots,
            standing: Standing::Up,
            joined: Moment(nth as u64),
        };
        self.desired.servers.insert(name, entry);
        self
    }

    /// A site with a database that wants at least `min` instances, at most 4.
    pub fn site(self, name: &str, min: usize) -> Rack {
        self.site_between(name, min, 4.max(min))
    }

    pub fn site_between(mut self, name: &str, min: usize, max: usize) -> Rack {
        let number = self.desired.sites.len() as u32 + 1;
        let entry = site_document(name, number, min, max, Moment(0));
        self.desired.sites.insert(entry.name.clone(), entry);
        self
    }

    pub fn pool(mut self, size: usize) -> Rack {
        self.desired.cell.pool_size = size;
        self
    }

    /// Another pool that begins on these servers.
    pub fn pool_on(mut self, name: &str, servers: &[&str]) -> Rack {
        let name = pool(name);
        let servers: BTreeSet<ServerId> = servers.iter().map(|name| server(name)).collect();
        let entry = Pool { name: name.clone(), size: servers.len(), servers, created: Moment(0) };
        self.desired.pools.insert(name, entry);
        self
    }

    /// A site with its database on this pool.
    pub fn site_on(self, pool_name: &str, name: &str) -> Rack {
        let mut rack = self.site(name, 1);
        rack.desired.sites.get_mut(&site(name)).expect("it was just made").pool = pool(pool_name);
        rack
    }

    pub fn seed(mut self, seed: u64) -> Rack {
        self.seed = seed;
        self
    }

    /// Switches everything on.
    pub fn start(self) -> Cell {
        Cell::new(self.desired, self.seed)
    }
}

pub fn site_document(name: &str, number: u32, min: usize, max: usize, created: Moment) -> Site {
    Site {
        name: site(name),
        number,
        domains: vec![Domain::parse(&format!("{name}.example.org")).expect("names here are labels")],
        image: image(),
        tree: digest(name, 1),
        database: Some(Database {
            name: name.to_owned(),
            user: name.to_owned(),
            password: "secret".to_owned(),
        }),
        pool: PoolName::first(),
        min,
        max,
        policy: Policy::default(),
        limits: Limits::default(),
        database_limits: Default::default(),
        created,
    }
}

pub fn server(name: &str) -> ServerId {
    ServerId::parse(name).expect("tests name servers by labels")
}

pub fn pool(name: &str) -> PoolName {
    PoolName::parse(name).expect("tests name pools by labels")
}

pub fn site(name: &str) -> SiteName {
    SiteName::parse(name).expect("tests name sites by labels")
}

fn image() -> ImageName {
    ImageName::parse(IMAGE).expect("a valid constant")
}

/// Stands for the hash of the `version`th content of `what`.
pub fn digest(what: &str, version: u64) -> Digest {
    let letters: u64 = what.bytes().fold(7, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
    Digest::parse(&format!("{version:08x}{letters:056x}")).expect("64 hexadecimal digits")
}
