//! Sites: creation, deployment, scaling. What follows a creation with an SQL dump is in site_dump.rs, deletion
//! in site_removal.rs, how sites stand in site_view.rs.
//!
//! A site with a dump is first known with max 0 and a document under `/preparing`; when the dump is in, both
//! are replaced by the site as asked for. Interrupted anywhere, the same command can be given again.

use axum::Json;
use axum::extract::Path;
use kopek_core::api::{CreateSite, DeploySite, InstanceView, LimitSite, ScaleSite, SiteView};
use kopek_core::desired::{DatabaseLimits, Policy, Site};
use kopek_core::plan::{PoolChoice, pool_for_site};
use kopek_core::{SiteName, keys};
use kopek_store::Op;

use super::images::require_tree;
use super::site_turn::Turn;
use super::site_view::{instance_views, site_view};
use super::{Acting, Refused, committed};
use crate::active::Active;
use crate::state::put;
use crate::view::View;

/// Each site has 65,536 user ids from 100,000 on, and ids have 32 bits.
const SITE_NUMBER_MAX: u32 = 65_533;

pub async fn list(Acting(active): Acting) -> Json<Vec<SiteView>> {
    let view = active.view();
    Json(view.state.desired.sites.values().map(|site| site_view(&view, site)).collect())
}

pub async fn show(Acting(active): Acting, Path(name): Path<SiteName>) -> Result<Json<SiteView>, Refused> {
    let view = active.view();
    let site = view.state.desired.sites.get(&name).ok_or_else(|| Refused::unknown("site", &name))?;
    Ok(Json(site_view(&view, site)))
}

pub async fn instances(Acting(active): Acting) -> Json<Vec<InstanceView>> {
    let view = active.view();
    Json(view.state.placed.sites.keys().flat_map(|name| instance_views(&view, name)).collect())
}

pub async fn create(
    Acting(active): Acting,
    Json(wanted): Json<CreateSite>,
) -> Result<Json<SiteView>, Refused> {
    // What is being removed is gone first, or else stays and is taken over.
    let turn = match active.view().state.abandoned.contains(&wanted.name) {
        true => Some(Turn::wait_for(&active, &wanted.name).await?),
        false => None,
    };
    let _editing = active.editing.lock().await;
    let view = active.view();
    let state = &view.state;
    let is_abandoned = state.abandoned.contains(&wanted.name);
    if is_abandoned && turn.is_none() {
        return Err(Refused::conflict(format!("site {} is being removed; repeat the command", wanted.name)));
    }
    if wanted.domains.is_empty() {
        return Err(Refused::unusable(format!("site {} needs a --domain", wanted.name)));
    }
    check_number(&wanted.name, wanted.min, wanted.max)?;
    check_policy(&wanted.name, wanted.policy)?;
    if !state.desired.images.contains_key(&wanted.image) {
        return Err(Refused::unknown("image", &wanted.image));
    }
    require_tree(&active, &wanted.tree).await?;
    let known = state.desired.sites.get(&wanted.name);
    let choice = choose_pool(&active, &view, &wanted, known)?;
    for other in state.desired.sites.values().filter(|other| other.name != wanted.name) {
        if let Some(domain) = wanted.domains.iter().find(|domain| other.domains.contains(domain)) {
            return Err(Refused::conflict(format!(
                "domain {domain} already belongs to site {}; give another --domain or delete that site",
                other.name
            )));
        }
        if let (Some(wanted), Some(taken)) = (&wanted.database, &other.database)
            && wanted.name == taken.name
            && other.pool == choice.pool
        {
            return Err(Refused::conflict(format!(
                "database {} already belongs to site {}; name another one in the site's configuration",
                wanted.name, other.name
            )));
        }
    }
    if let Some(database) = &wanted.database {
        database.check().map_err(Refused::unusable)?;
    }
    let number = known.map_or(state.site_number + 1, |site| site.number);
    if number > SITE_NUMBER_MAX {
        return Err(Refused::conflict(format!(
            "this cell has given out all its {SITE_NUMBER_MAX} site numbers; make another cell for more sites"
        )));
    }
    let site = Site {
        name: wanted.name.clone(),
        number,
        domains: wanted.domains,
        image: wanted.image,
        tree: wanted.tree,
        database: wanted.database,
        pool: choice.pool,
        min: wanted.min,
        max: wanted.max,
        policy: wanted.policy,
        limits: wanted.limits,
        database_limits: known.map_or(DatabaseLimits::default(), |site| site.database_limits),
        created: known.map_or(active.now(), |site| site.created),
    };
    let name = &site.name;
    let is_preparing = state.preparing.contains_key(name);
    if let Some(known) = known.filter(|_| !is_preparing) {
        if *known == site {
            return Ok(Json(site_view(&view, known)));
        }
        return Err(Refused::conflict(format!(
            "site {name} exists already and differs; use `kopek site deploy` or `scale`, or delete it first"
        )));
    }
    if let Some(known) = known.filter(|known| known.pool != site.pool) {
        return Err(Refused::conflict(format!(
            "site {name} is being created with its database on {}; give the same again, or `kopek site delete \
             {name}` first",
            known.pool
        )));
    }
    if let Some(known) = known.filter(|known| names(known) != names(&site)) {
        // What was made under the first name would be nobody's.
        let (database, _) = names(known).unwrap_or(("none", ""));
        return Err(Refused::conflict(format!(
            "site {name} is being created with another database or user (database {database}); give the same \
             again, or `kopek site delete {name}` first"
        )));
    }
    let mut ops = Vec::new();
    if known.is_none() {
        ops.push(put(keys::SITE_NUMBER.to_owned(), &number));
        if site.database.is_some() {
            ops.push(active.event(name, &format!("database goes to {}", site.pool), choice.reason));
        }
    }
    if is_abandoned {
        ops.push(Op::Delete { key: keys::abandoned(name) });
    }
    if wanted.has_dump {
        ops.push(put(keys::site(name), &Site { min: 0, max: 0, ..site.clone() }));
        ops.push(put(keys::preparing(name), &site));
    } else {
        ops.push(put(keys::site(name), &site));
        if is_preparing {
            ops.push(Op::Delete { key: keys::preparing(name) });
        }
        let domains: Vec<&str> = site.domains.iter().map(|domain| domain.as_str()).collect();
        ops.push(active.event(name, "site created", domains.join(", ")));
    }
    let compares = [&keys::site(name), &keys::preparing(name), &keys::abandoned(name), keys::SITE_NUMBER]
        .map(|key| state.unchanged(key));
    committed(active.commit(compares.to_vec(), ops).await?)?;
    let mut shown = site_view(&active.view(), &site);
    if wanted.has_dump {
        // The word on which the command line sends the dump.
        "preparing".clone_into(&mut shown.state);
    }
    Ok(Json(shown))
}

pub async fn deploy(
    Acting(active): Acting,
    Path(name): Path<SiteName>,
    Json(deploy): Json<DeploySite>,
) -> Result<Json<SiteView>, Refused> {
    require_tree(&active, &deploy.tree).await?;
    edit(&active, &name, "deployed", |site| {
        site.tree = deploy.tree;
        Ok(format!("tree {}", &site.tree.as_str()[..12]))
    })
    .await
}

pub async fn scale(
    Acting(active): Acting,
    Path(name): Path<SiteName>,
    Json(scale): Json<ScaleSite>,
) -> Result<Json<SiteView>, Refused> {
    edit(&active, &name, "limits changed", |site| {
        site.min = scale.min.unwrap_or(site.min);
        site.max = scale.max.unwrap_or(site.max);
        site.policy = scale.policy.unwrap_or(site.policy);
        check_policy(&site.name, site.policy)?;
        check_number(&site.name, site.min, site.max)?;
        let Policy::Load { up, down } = site.policy;
        Ok(format!("{} to {} instances, load {down} to {up}", site.min, site.max))
    })
    .await
}

pub async fn limit(
    Acting(active): Acting,
    Path(name): Path<SiteName>,
    Json(limit): Json<LimitSite>,
) -> Result<Json<SiteView>, Refused> {
    edit(&active, &name, "limits of its database changed", |site| {
        let limits = limit.applied_to(site.database_limits);
        limits.check().map_err(|error| Refused::unusable(format!("site {}: {error}", site.name)))?;
        site.database_limits = limits;
        Ok(limits.to_string())
    })
    .await
}

/// The pool that was asked for, or that it has already, or the best one.
fn choose_pool(
    active: &Active,
    view: &View,
    wanted: &CreateSite,
    known: Option<&Site>,
) -> Result<PoolChoice, Refused> {
    let state = &view.state;
    let Some(pool) = wanted.pool.as_ref().or(known.map(|site| &site.pool)) else {
        return Ok(pool_for_site(&state.desired, &state.placed, &view.observed, active.now()));
    };
    if !state.desired.pool_names().contains(pool) {
        return Err(Refused::unknown("pool", pool));
    }
    Ok(PoolChoice { pool: pool.clone(), reason: "asked for by an admin".to_owned() })
}

/// Of the site's database and its user: what a site that is being created cannot change.
fn names(site: &Site) -> Option<(&str, &str)> {
    site.database.as_ref().map(|database| (database.name.as_str(), database.user.as_str()))
}

/// A site without any instance would stay so: a request wakes none.
fn check_number(name: &SiteName, min: usize, max: usize) -> Result<(), Refused> {
    if min == 0 || min > max {
        let error = format!(
            "site {name}: --min is {min} and --max {max}; --min must be at least 1 and not exceed --max"
        );
        return Err(Refused::unusable(error));
    }
    Ok(())
}

fn check_policy(name: &SiteName, policy: Policy) -> Result<(), Refused> {
    policy.check().map_err(|error| Refused::unusable(format!("site {name}: {error}")))
}

async fn edit(
    active: &Active,
    name: &SiteName,
    what: &str,
    change: impl FnOnce(&mut Site) -> Result<String, Refused>,
) -> Result<Json<SiteView>, Refused> {
    let _editing = active.editing.lock().await;
    let view = active.view();
    let mut site =
        view.state.desired.sites.get(name).cloned().ok_or_else(|| Refused::unknown("site", name))?;
    if view.state.preparing.contains_key(name) {
        let error =
            format!("site {name} is still being created; repeat `kopek site create {name}` or delete it");
        return Err(Refused::conflict(error));
    }
    let reason = change(&mut site)?;
    let ops = vec![put(keys::site(name), &site), active.event(name, what, reason)];
    committed(active.commit(vec![view.state.unchanged(&keys::site(name))], ops).await?)?;
    Ok(Json(site_view(&view, &site)))
}

#[cfg(test)]
mod tests {
    use kopek_core::api::Bound;
    use kopek_core::desired::{Database, Image, Limits, Pool};
    use kopek_core::{Bytes, Digest, Domain, ImageName, PoolName};

    use super::*;
    use crate::api::desk::Desk;

    #[tokio::test]
    async fn a_limit_changes_alone_and_one_of_nothing_is_refused() {
        let (desk, image) = desk_with_an_image().await;
        ask(&desk, &image, "blog", "a.test", "a").await.unwrap();
        let set = async |change: LimitSite| {
            limit(desk.acting(), Path(SiteName::parse("blog").unwrap()), Json(change)).await
        };
        let connections = |bound| LimitSite { connections: Some(bound), ..LimitSite::default() };
        let rate = LimitSite { queries_per_second: Some(Bound::AtMost(9)), ..LimitSite::default() };
        let _ = set(connections(Bound::AtMost(20))).await.unwrap();
        let both = set(rate).await.unwrap().0.database_limits;
        assert_eq!((both.connections, both.queries_per_second), (Some(20), Some(9)));
        let one = set(connections(Bound::None)).await.unwrap().0.database_limits;
        assert_eq!((one.connections, one.queries_per_second), (None, Some(9)));
        let refused = set(connections(Bound::AtMost(0))).await.unwrap_err();
        assert!(refused.says("site blog"), "{refused:?}");
        // The command that made the site can still be repeated.
        ask(&desk, &image, "blog", "a.test", "a").await.unwrap();
    }

    async fn desk_with_an_image() -> (Desk, Image) {
        let desk = Desk::new().await;
        let name = ImageName::parse("php8.2-apache").unwrap();
        let digest = Digest::parse(&"ab".repeat(32)).unwrap();
        let image = Image { name, digest, bytes: Bytes(1) };
        let known = put(keys::image(&image.name), &image);
        desk.active.commit(vec![], vec![known]).await.unwrap();
        (desk, image)
    }

    /// Its files are the image's: a tree that the cell has.
    async fn ask(
        desk: &Desk,
        image: &Image,
        name: &str,
        domain: &str,
        database: &str,
    ) -> Result<(), Refused> {
        ask_on(None, desk, image, name, domain, database).await
    }

    async fn ask_on(
        pool: Option<&str>,
        desk: &Desk,
        image: &Image,
        name: &str,
        domain: &str,
        database: &str,
    ) -> Result<(), Refused> {
        let wanted = CreateSite {
            name: SiteName::parse(name).unwrap(),
            domains: vec![Domain::parse(domain).unwrap()],
            image: image.name.clone(),
            tree: image.digest.clone(),
            database: Some(Database { name: database.into(), user: name.into(), password: "secret".into() }),
            pool: pool.map(|pool| PoolName::parse(pool).unwrap()),
            min: 1,
            max: 1,
            policy: Policy::default(),
            limits: Limits::default(),
            has_dump: false,
        };
        create(desk.acting(), Json(wanted)).await.map(drop)
    }

    #[tokio::test]
    async fn a_database_has_its_name_for_itself_on_its_pool_only() {
        let (desk, image) = desk_with_an_image().await;
        let name = PoolName::parse("pool2").unwrap();
        let pool =
            Pool { name: name.clone(), size: 1, servers: Default::default(), created: desk.active.now() };
        desk.active.commit(vec![], vec![put(keys::pool(&name), &pool)]).await.unwrap();
        let ask = |pool, name: &'static str, domain| ask_on(Some(pool), &desk, &image, name, domain, "wp");
        ask("pool1", "one", "a.test").await.unwrap();
        let taken = ask("pool1", "two", "b.test").await.unwrap_err();
        assert!(taken.says("database wp already belongs to site one"), "{taken:?}");
        ask("pool2", "two", "b.test").await.unwrap();
        ask("pool2", "two", "b.test").await.unwrap();
        let moved = ask("pool1", "two", "b.test").await.unwrap_err();
        assert!(moved.says("exists already and differs") || moved.says("database wp"), "{moved:?}");
        let unknown = ask("pool3", "three", "c.test").await.unwrap_err();
        assert!(unknown.says("there is no pool pool3"), "{unknown:?}");
        // Given again without a pool, it is the same site.
        ask_on(None, &desk, &image, "two", "b.test", "wp").await.unwrap();
        assert_eq!(desk.active.view().state.desired.sites[&SiteName::parse("two").unwrap()].pool, name);
    }

    #[tokio::test]
    async fn of_two_sites_created_at_once_one_gets_the_domain_and_one_the_database() {
        let (desk, image) = desk_with_an_image().await;
        for [domain, other_domain, database, other_database, taken] in
            [["a.test", "a.test", "a", "b", "domain a.test"], ["c.test", "d.test", "c", "c", "database c"]]
        {
            let (one, other) = (format!("{database}-one"), format!("{database}-two"));
            let (one, other) = tokio::join!(
                ask(&desk, &image, &one, domain, database),
                ask(&desk, &image, &other, other_domain, other_database)
            );
            let refused = one.err().into_iter().chain(other.err()).collect::<Vec<_>>();
            assert!(matches!(&refused[..], [one] if format!("{one:?}").contains(taken)), "{refused:?}");
        }
    }
}
