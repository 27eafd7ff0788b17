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
            let (value, rest) = literal(rest.trim_start().strip_prefix(',')?)?;
            // Anything else would make it part of an expression.
            let is_whole = rest.trim_start().starts_with(')');
            (key == name && is_whole).then_some(value)
        })
    };
    Some(Database { name: value("DB_NAME")?, user: value("DB_USER")?, password: value("DB_PASSWORD")? })
}

fn mediawiki(text: &str) -> Option<Database> {
    let value = |name: &str| {
        statements(text).find_map(|line| {
            let value = line.strip_prefix(name)?.trim_start().strip_prefix('=')?;
            let (value, rest) = literal(value)?;
            rest.trim_start().starts_with(';').then_some(value)
        })
    };
    Some(Database { name: value("$wgDBname")?, user: value("$wgDBuser")?, password: value("$wgDBpassword")? })
}

/// Lines that are not commented out.
fn statements(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().map(str::trim_start);
    lines.filter(|line| !line.starts_with("//") && !line.starts_with('#') && !line.starts_with('*'))
}

/// A PHP string literal, and what follows it. None if it is no literal or depends on a variable (PHP manual,
/// Strings).
fn literal(text: &str) -> Option<(String, &str)> {
    let text = text.trim_start();
    let (value, rest) = match text.strip_prefix('\'') {
        Some(inside) => single_quoted(inside)?,
        None => double_quoted(text.strip_prefix('"')?)?,
    };
    // Bytes that are no UTF-8, in the file or made by an escape: better not read than read wrongly.
    let value = String::from_utf8(value).ok()?;
    (!value.contains(char::REPLACEMENT_CHARACTER)).then_some((value, rest))
}

/// A backslash escapes only itself and the quote.
fn single_quoted(text: &str) -> Option<(Vec<u8>, &str)> {
    let mut value = String::new();
    let mut chars = text.chars();
    loop {
        match chars.next()? {
            '\'' => return Some((value.into_bytes(), chars.as_str())),
            '\\' if chars.as_str().starts_with(['\\', '\'']) => value.extend(chars.next()),
            c => value.push(c),
        }
    }
}

fn double_quoted(text: &str) -> Option<(Vec<u8>, &str)> {
    let mut value = Vec::new();
    let mut rest = text;
    loop {
        let c = rest.chars().next()?;
        let after = &rest[c.len_utf8()..];
        rest = match c {
            '"' => return Some((value, after)),
            '\\' => escape(after, &mut value)?,
            // `$name`, `${name}` and `{$name}` stand for a variable's value; any other dollar for itself.
            '$' if after.starts_with(|c: char| c.is_alphabetic() || c == '_' || c == '{') => return None,
            '{' if after.starts_with('$') => return None,
            c => {
                value.extend(c.encode_utf8(&mut [0; 4]).bytes());
                after
            }
        };
    }
}

/// What follows a backslash between double quotes. One that escapes nothing stands for itself.
fn escape<'a>(text: &'a str, value: &mut Vec<u8>) -> Option<&'a str> {
    let c = text.chars().next()?;
    let after = &text[c.len_utf8()..];
    let simple = match c {
        'n' => b'\n',
        't' => b'\t',
        'r' => b'\r',
        'v' => 0x0b,
        'e' => 0x1b,
        'f' => 0x0c,
        '\\' | '$' | '"' => c as u8,
        '0'..='7' => {
            let (number, after) = digits(text, 8, 3);
            value.push(number as u8);
            return Some(after);
        }
        'x' if after.starts_with(|c: char| c.is_ascii_hexdigit()) => {
            let (number, after) = digits(after, 16, 2);
            value.push(number as u8);
            return Some(after);
        }
        'u' if after.starts_with('{') => {
            let (number, after) = digits(&after[1..], 16, 6);
            value.extend(char::from_u32(number)?.encode_utf8(&mut [0; 4]).bytes());
            return after.strip_prefix('}');
        }
        _ => {
            value.push(b'\\');
            value.extend(text[..c.len_utf8()].bytes());
            return Some(after);
        }
    };
    value.push(simple);
    Some(after)
}

/// A number of at most `most` digits, and what follows.
fn digits(text: &str, radix: u32, most: usize) -> (u32, &str) {
    let length = text.chars().take(most).take_while(|c| c.is_digit(radix)).count();
    let number = text[..length].chars().filter_map(|c| c.to_digit(radix));
    (number.fold(0, |number, digit| number * radix + digit), &text[length..])
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
        for name in ["getenv('X')", "\"$x\"", "PREFIX . 'n'"] {
            let text =
                format!("define('DB_NAME', {name});\ndefine('DB_USER','u');\ndefine('DB_PASSWORD','p');\n");
            assert_eq!(wordpress(&text), None, "{name}");
        }
    }

    fn password(literal: &str) -> Option<String> {
        let text =
            format!("define('DB_NAME', 'n');\ndefine('DB_USER', 'u');\ndefine('DB_PASSWORD', {literal});\n");
        wordpress(&text).map(|database| database.password)
    }

    #[test]
    fn awkward_passwords_are_read_as_php_reads_them() {
        // Each with what `php -r` echoes for it.
        for (literal, meant) in [
            (r#"'p\$1'"#, r"p\$1"),
            (r#"'it\'s'"#, "it's"),
            (r#"'a\\'"#, r"a\"),
            (r#"'\n"{$x}'"#, r#"\n"{$x}"#),
            (r#""p\$1""#, "p$1"),
            (r#""p\\$1""#, r"p\$1"),
            (r#""p$1$""#, "p$1$"),
            (r#""\\\$a""#, r"\$a"),
            (r#""say \"hi\", it's""#, r#"say "hi", it's"#),
            (r#""\'\q\{$1""#, r"\'\q\{$1"),
            (r#""{ $1}""#, "{ $1}"),
            (r#""\x41\101\u{41}\x4g""#, "AAA\u{4}g"),
            (r#""tab\there""#, "tab\there"),
            (r#""\xc3\xa4""#, "ä"),
            ("'pä)\u{1f511}'", "pä)\u{1f511}"),
        ] {
            assert_eq!(password(literal).as_deref(), Some(meant), "{literal}");
        }
    }

    #[test]
    fn passwords_that_depend_on_more_than_a_literal_are_not_guessed() {
        for literal in
            [r#""$x""#, r#""a${x}""#, r#""{$x}""#, "'a' . $x", "'a'.'b'", r#""\xff""#, "'open", "''x"]
        {
            assert_eq!(password(literal), None, "{literal}");
        }
        assert_eq!(mediawiki("$wgDBname = 'a' . $x;\n$wgDBuser = 'u';\n$wgDBpassword = 'p';\n"), None);
    }

    #[test]
    fn local_settings_name_the_database() {
        let text = "$wgDBname = \"wiki\";\n$wgDBuser = 'w';\n$wgDBpassword = 'p';\n";
        assert_eq!(mediawiki(text).unwrap().name, "wiki");
    }
}
