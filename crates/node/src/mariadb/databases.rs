//! Databases and accounts of the sites whose writer this member is. A site's account works only from the
//! site's loopback address and only on the site's database.
//!
//! Making one goes through the whole pool as DDL, so first it is looked whether everything is there.

use kopek_core::assignment::AssignedDatabase;
use kopek_core::desired::BadDatabase;
use kopek_core::part::site_loopback;

use super::client::{Client, ClientError, identifier, quoted};

#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    #[error(transparent)]
    Bad(#[from] BadDatabase),
    #[error("database {name:?} belongs to the site at {host}; name another one in this site")]
    Taken { name: String, host: String },
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// Makes the database and the account exist as assigned, the password among it.
pub async fn ensure(client: &mut Client, assigned: &AssignedDatabase) -> Result<(), DatabaseError> {
    let database = &assigned.database;
    // Checked again here because it decides who may read what.
    database.check()?;
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
    if !found.tokens {
        let table = token_table(assigned.number);
        client.change(&format!("CREATE DATABASE IF NOT EXISTS {TOKENS}")).await?;
        client
            .change(&format!(
                "CREATE TABLE IF NOT EXISTS {table} \
                 (slot BIGINT UNSIGNED NOT NULL PRIMARY KEY, token BIGINT UNSIGNED NOT NULL) ENGINE=InnoDB"
            ))
            .await?;
        client.change(&format!("GRANT SELECT, INSERT, UPDATE ON {table} TO {account}")).await?;
    }
    Ok(())
}

/// Where `sql` notes which transactions of a site were committed: a row for each connection that writes.
const TOKENS: &str = "kopek";

fn token_table(number: u32) -> String {
    format!("{TOKENS}.site_{number}")
}

/// For a dump that is read once more: what an earlier attempt left is gone, the account stays.
pub async fn empty(client: &mut Client, assigned: &AssignedDatabase) -> Result<(), DatabaseError> {
    let name = &assigned.database.name;
    assigned.database.check()?;
    let host = site_loopback(assigned.number).to_string();
    refuse_taken(client, name, &grant_pattern(name), &host).await?;
    client.change(&format!("DROP DATABASE IF EXISTS {}", identifier(name))).await?;
    client.change(&format!("CREATE DATABASE {}", identifier(name))).await?;
    Ok(())
}

/// For a deleted site.
pub async fn drop(client: &mut Client, assigned: &AssignedDatabase) -> Result<(), DatabaseError> {
    let database = &assigned.database;
    database.check()?;
    let host = site_loopback(assigned.number).to_string();
    refuse_taken(client, &database.name, &grant_pattern(&database.name), &host).await?;
    let account = format!("{}@{}", quoted(&database.user), quoted(&host));
    // The account first: nothing can write into what is being dropped.
    client.change(&format!("DROP USER IF EXISTS {account}")).await?;
    client.change(&format!("DROP TABLE IF EXISTS {}", token_table(assigned.number))).await?;
    client.change(&format!("DROP DATABASE IF EXISTS {}", identifier(&database.name))).await?;
    Ok(())
}

struct Found {
    database: bool,
    account: Account,
    grant: bool,
    tokens: bool,
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
         (SELECT COUNT(*) FROM mysql.db WHERE Db = ? AND User = ? AND Host = ?), \
         (SELECT COUNT(*) FROM mysql.tables_priv WHERE Db = ? AND User = ? AND Host = ? AND Table_name = ?)";
    let database = &assigned.database;
    let (name, user) = (&database.name, &database.user);
    let table = format!("site_{}", assigned.number);
    let rows = client
        .rows(ASK, (&database.password, name, user, host, pattern, user, host, TOKENS, user, host, table))
        .await?;
    let row = rows.into_iter().next().expect("a SELECT without FROM gives one row");
    let (hash, databases, stored, grants, tokens): (String, u64, Option<String>, u64, u64) =
        mysql_async::from_row_opt(row).map_err(|_| ClientError::Odd)?;
    let account = match stored {
        None => Account::Missing,
        Some(stored) if stored == hash => Account::Right,
        Some(_) => Account::OtherPassword,
    };
    Ok(Found { database: databases > 0, account, grant: grants > 0, tokens: tokens > 0, hash })
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

    #[test]
    fn a_name_in_a_grant_stands_for_itself_only() {
        assert_eq!(grant_pattern("a_b%c"), r"a\_b\%c");
    }
}
