//! Databases and accounts of the sites whose writer this member is. A site's account works only from the
//! site's loopback address and only on the site's database.
//!
//! Making one goes through the whole pool as DDL, so first it is looked whether everything is there.

use kopek_core::assignment::AssignedDatabase;
use kopek_core::part::site_loopback;

use super::client::{Client, ClientError, identifier, quoted};

/// MariaDB's own. A site that owned `mysql` would own the pool.
const RESERVED: [&str; 4] = ["mysql", "information_schema", "performance_schema", "sys"];
/// MariaDB's limits, in characters.
const NAME_MAX: usize = 64;
const USER_MAX: usize = 128;

#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    #[error(
        "{name:?} cannot be a site's database; use 1 to 64 letters, digits, _ and -, not a name of MariaDB's own"
    )]
    BadName { name: String },
    #[error("{user:?} cannot be a database user; use 1 to 128 characters")]
    BadUser { user: String },
    #[error("database {name:?} belongs to the site at {host}; name another one in this site")]
    Taken { name: String, host: String },
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// Whether a site may call its database so. Checked again here because it decides who may read what.
fn check(assigned: &AssignedDatabase) -> Result<(), DatabaseError> {
    let (name, user) = (&assigned.database.name, &assigned.database.user);
    let plain = |c: char| c.is_alphanumeric() || c == '_' || c == '-' || c == '$';
    let reserved = RESERVED.iter().any(|own| own.eq_ignore_ascii_case(name));
    if reserved || name.is_empty() || name.chars().count() > NAME_MAX || !name.chars().all(plain) {
        return Err(DatabaseError::BadName { name: name.clone() });
    }
    if user.is_empty() || user.chars().count() > USER_MAX || user.contains('\0') {
        return Err(DatabaseError::BadUser { user: user.clone() });
    }
    Ok(())
}

/// Makes the database and the account exist as assigned, the password among it.
pub async fn ensure(client: &mut Client, assigned: &AssignedDatabase) -> Result<(), DatabaseError> {
    check(assigned)?;
    let database = &assigned.database;
    let host = site_loopback(assigned.number).to_string();
    let pattern = grant_pattern(&database.name);
    refuse_taken(client, &database.name, &pattern, &host).await?;
    let account = format!("{}@{}", quoted(&database.user), quoted(&host));
    let found = find(client, assigned, &pattern, &host).await?;
    if !found.database {
        client.change(&format!("CREATE DATABASE IF NOT EXISTS {}", identifier(&database.name))).await?;
    }
    if found.account != Account::Right {
        // The hash, so that no log and no other member sees the password.
        let hash = quoted(&found.hash);
        let made = format!("USER IF NOT EXISTS {account} IDENTIFIED VIA mysql_native_password USING {hash}");
        let altered = format!("USER {account} IDENTIFIED VIA mysql_native_password USING {hash}");
        match found.account {
            Account::Missing => client.change(&format!("CREATE {made}")).await?,
            _ => client.change(&format!("ALTER {altered}")).await?,
        }
    }
    if !found.grant {
        client.change(&format!("GRANT ALL PRIVILEGES ON {}.* TO {account}", identifier(&pattern))).await?;
    }
    Ok(())
}

/// For a deleted site.
pub async fn drop(client: &mut Client, assigned: &AssignedDatabase) -> Result<(), DatabaseError> {
    check(assigned)?;
    let database = &assigned.database;
    let host = site_loopback(assigned.number).to_string();
    refuse_taken(client, &database.name, &grant_pattern(&database.name), &host).await?;
    let account = format!("{}@{}", quoted(&database.user), quoted(&host));
    // The account first: nothing can write into what is being dropped.
    client.change(&format!("DROP USER IF EXISTS {account}")).await?;
    client.change(&format!("DROP DATABASE IF EXISTS {}", identifier(&database.name))).await?;
    Ok(())
}

struct Found {
    database: bool,
    account: Account,
    grant: bool,
    /// Of the password as assigned.
    hash: String,
}

#[derive(PartialEq, Eq)]
enum Account {
    Missing,
    OtherPassword,
    Right,
}

async fn find(
    client: &mut Client,
    assigned: &AssignedDatabase,
    pattern: &str,
    host: &str,
) -> Result<Found, DatabaseError> {
    const ASK: &str = "SELECT PASSWORD(?), \
         (SELECT COUNT(*) FROM information_schema.schemata WHERE schema_name = ?), \
         (SELECT JSON_VALUE(Priv, '$.authentication_string') FROM mysql.global_priv WHERE User = ? AND Host = ?), \
         (SELECT COUNT(*) FROM mysql.db WHERE Db = ? AND User = ? AND Host = ?)";
    let database = &assigned.database;
    let (name, user) = (&database.name, &database.user);
    let rows = client.rows(ASK, (&database.password, name, user, host, pattern, user, host)).await?;
    let row = rows.into_iter().next().expect("a SELECT without FROM gives one row");
    let (hash, databases, stored, grants): (String, u64, Option<String>, u64) =
        mysql_async::from_row_opt(row).map_err(|_| ClientError::Odd)?;
    let account = match stored {
        None => Account::Missing,
        Some(stored) if stored == hash => Account::Right,
        Some(_) => Account::OtherPassword,
    };
    Ok(Found { database: databases > 0, account, grant: grants > 0, hash })
}

/// The pool has one set of names for all sites.
async fn refuse_taken(
    client: &mut Client,
    name: &str,
    pattern: &str,
    host: &str,
) -> Result<(), DatabaseError> {
    const ASK: &str = "SELECT Host FROM mysql.db WHERE Db = ? AND Host LIKE '127.%' AND Host <> ? LIMIT 1";
    let other = client.rows(ASK, (pattern, host)).await?.into_iter().next();
    match other.and_then(|row| row.get::<String, _>(0)) {
        Some(host) => Err(DatabaseError::Taken { name: name.to_owned(), host }),
        None => Ok(()),
    }
}

/// In GRANT a database name is a pattern: without the escape, rights on `a_b` are rights on `axb` too.
fn grant_pattern(name: &str) -> String {
    name.replace('_', "\\_").replace('%', "\\%")
}

#[cfg(test)]
mod tests {
    use super::*;
    use kopek_core::desired::Database;

    fn assigned(name: &str, user: &str) -> AssignedDatabase {
        let database = Database { name: name.to_owned(), user: user.to_owned(), password: String::new() };
        AssignedDatabase { number: 1, database }
    }

    #[test]
    fn a_site_cannot_have_a_database_of_mariadbs_own_or_one_outside_its_folder() {
        for name in
            ["", "mysql", "MySQL", "information_schema", "../mysql", "a/b", "#mysql50#mysql", "a.b", "a b"]
        {
            assert!(check(&assigned(name, "u")).is_err(), "{name:?}");
        }
        assert!(check(&assigned("wp_shop-2", "it's me")).is_ok());
        assert!(check(&assigned("wp", "")).is_err());
    }

    #[test]
    fn a_name_in_a_grant_stands_for_itself_only() {
        assert_eq!(grant_pattern("a_b%c"), r"a\_b\%c");
    }
}
