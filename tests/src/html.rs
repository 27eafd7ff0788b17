//! Reads pages as text: the little that their users need to know of their markup. Pure; called by what uses a site's
//! pages.

use anyhow::{Context, Result};

/// Of an address with or without its host, the path.
pub fn path_of(url: &str) -> Result<String> {
    if url.starts_with('/') {
        return Ok(url.to_owned());
    }
    let path = url.splitn(4, '/').nth(3).with_context(|| format!("{url} has no path"))?;
    Ok(format!("/{path}"))
}

pub fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    Some(text.split_once(before)?.1.split_once(after)?.0)
}

/// The words of a page, for a message of one line.
pub fn visible(html: &str) -> String {
    let mut words = String::new();
    let mut in_tag = false;
    for c in html.split_once("<body").map_or(html, |(_, body)| body).chars() {
        match c {
            '<' => in_tag = true,
            '>' => in_tag = false,
            c if !in_tag => words.push(c),
            _ => (),
        }
    }
    words.split_whitespace().take(40).collect::<Vec<_>>().join(" ")
}

/// The value of a form's field, as a browser sends it back.
pub fn field(html: &str, name: &str) -> Option<String> {
    inputs(html)
        .find(|tag| attribute(tag, "name").as_deref() == Some(name))
        .and_then(|tag| attribute(tag, "value"))
}

/// What a form sends back unseen.
pub fn hidden_fields(html: &str, form: &str) -> Vec<(String, String)> {
    let form = between(html, &format!("id=\"{form}\""), "</form>").unwrap_or_default();
    let hidden = inputs(form).filter(|tag| attribute(tag, "type").as_deref() == Some("hidden"));
    hidden.filter_map(|tag| Some((attribute(tag, "name")?, attribute(tag, "value")?))).collect()
}

/// What stands in the text area of a page.
pub fn text_area(html: &str) -> Option<String> {
    let area = between(html, "<textarea", "</textarea>")?;
    Some(unescaped(area.split_once('>')?.1))
}

fn inputs(html: &str) -> impl Iterator<Item = &str> {
    html.split("<input").skip(1).map(|rest| rest.split_once('>').map_or(rest, |(tag, _)| tag))
}

fn attribute(tag: &str, name: &str) -> Option<String> {
    let after = ['"', '\''].iter().find_map(|quote| {
        let (_, value) = tag.split_once(&format!(" {name}={quote}"))?;
        value.split_once(*quote)
    });
    after.map(|(value, _)| unescaped(value))
}

/// The character references that forms are written with.
pub fn unescaped(text: &str) -> String {
    let text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&#039;", "'");
    text.replace("&#39;", "'").replace("&amp;", "&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_wherever_its_value_stands() {
        let html =
            "<form id=\"f\"><input type='hidden' value='+\\' name='a'><input name=\"b\" value=\"x &amp; y\"/>
            </form><input type=\"hidden\" name=\"other\" value=\"\">";
        assert_eq!(field(html, "a").as_deref(), Some("+\\"));
        assert_eq!(field(html, "b").as_deref(), Some("x & y"));
        assert_eq!(field(html, "c"), None);
        assert_eq!(hidden_fields(html, "f"), [("a".to_owned(), "+\\".to_owned())]);
    }
}
