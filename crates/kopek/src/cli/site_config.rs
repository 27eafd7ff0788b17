//! Reads which database an unmodified site expects from its own configuration: wp-config.php (WordPress) or
//! LocalSettings.php (MediaWiki), as literals. Nothing is executed. Called by `site create`.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use kopek_core::desired::Database;

/// A configuration file is some kilobytes.
const CONFIG_MAX: u64 = 1 << 20;

/// Looks into a packed tree.
pub fn database_in(packed: &Path) -> Result<Option<Database>> {
    let file = std::fs::File::open(packed).with_context(|| format!("cannot read {}", packed.display()))?;
    let mut archive = tar::Archive::new(zstd::Decoder::new(file)?);
    for entry in archive.entries()? {
        let entry = entry?;
        let path = entry.path()?.into_owned();
        let read: fn(&str) -> Option<Database> = match path.to_str().map(|path| path.trim_start_matches("./"))
        {
            Some("wp-config.php") => wordpress,
            Some("LocalSettings.php") => mediawiki,
            _ => continue,
        };
        let mut text = Vec::new();
        entry.take(CONFIG_MAX).read_to_end(&mut text)?;
        return Ok(read(&String::from_utf8_lossy(&text)));
    }
    Ok(None)
}

fn wordpress(text: &str) -> Option<Database> {
    let value = |name: &str| {
        statements(text).find_map(|line| {
            let arguments = line.strip_prefix("define")?.trim_start().strip_prefix('(')?;
            let (key, rest) = literal(arguments)?;
            let (value, _) = literal(rest.trim_start().strip_prefix(',')?)?;
            (key == name).then_some(value)
        })
    };
    Some(Database { name: value("DB_NAME")?, user: value("DB_USER")?, password: value("DB_PASSWORD")? })
}

fn mediawiki(text: &str) -> Option<Database> {
    let value = |name: &str| {
        statements(text).find_map(|line| {
            let value = line.strip_prefix(name)?.trim_start().strip_prefix('=')?;
            Some(literal(value)?.0)
        })
    };
    Some(Database { name: value("$wgDBname")?, user: value("$wgDBuser")?, password: value("$wgDBpassword")? })
}

/// Lines that are not commented out.
fn statements(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().map(str::trim_start);
    lines.filter(|line| !line.starts_with("//") && !line.starts_with('#') && !line.starts_with('*'))
}

/// A PHP string literal without interpolation, and what follows it.
fn literal(text: &str) -> Option<(String, &str)> {
    let text = text.trim_start();
    let quote = text.chars().next().filter(|c| *c == '\'' || *c == '"')?;
    let mut value = String::new();
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => {
                // In single quotes a backslash escapes only itself and the quote (PHP manual, Strings).
                if c != quote && c != '\\' {
                    value.push('\\');
                }
                value.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            c if c == quote => return Some((value, &text[at + c.len_utf8()..])),
            '$' if quote == '"' => return None,
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wp_config_names_the_database() {
        let text = "<?php\n// define('DB_NAME', 'old');\ndefine( 'DB_NAME', 'wp' );\ndefine(\"DB_USER\",\"u\");\n\
                    define('DB_PASSWORD', 'it\\'s $ecret');\n";
        let database = wordpress(text).unwrap();
        assert_eq!(
            (database.name.as_str(), database.user.as_str(), database.password.as_str()),
            ("wp", "u", "it's $ecret")
        );
    }

    #[test]
    fn a_configuration_that_computes_its_database_is_not_guessed() {
        assert_eq!(wordpress("define('DB_NAME', getenv('X'));\ndefine('DB_USER','u');\n"), None);
        assert_eq!(wordpress("define('DB_NAME', \"$x\");"), None);
    }

    #[test]
    fn local_settings_name_the_database() {
        let text = "$wgDBname = \"wiki\";\n$wgDBuser = 'w';\n$wgDBpassword = 'p';\n";
        assert_eq!(mediawiki(text).unwrap().name, "wiki");
    }
}
