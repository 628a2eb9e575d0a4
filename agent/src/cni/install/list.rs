//! A network's configuration file, with the plugin at the end of its chain or without.
//!
//! The text is cut and put together, never written anew: what others wrote stays byte for byte, and taking the plugin out
//! again gives back the file as it was.

use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::super::NAME;

/// A configuration that cannot be used, and why.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Broken(String);

#[derive(Deserialize)]
struct List<'a> {
    #[serde(default)]
    name: Option<Value>,
    #[serde(borrow)]
    plugins: Vec<&'a RawValue>,
}

/// Where a plugin stands in the text.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: usize,
    end: usize,
    ours: bool,
}

/// Puts the plugin's `entry` at the end of a list's chain, in the place of older ones. None where it is there already.
pub(super) fn insert(text: &str, entry: &Value) -> Result<Option<String>, Broken> {
    let spans = spans(text)?;
    let is_there = spans.last().is_some_and(|last| {
        serde_json::from_str::<Value>(&text[last.start..last.end]).is_ok_and(|found| found == *entry)
    });
    if is_there && spans.iter().filter(|span| span.ours).count() == 1 {
        return Ok(None);
    }
    let clean = remove(text, |_| true)?.unwrap_or_else(|| text.to_owned());
    let spans = self::spans(&clean)?;
    let Some(last) = spans.last() else { return Err(Broken("its list of plugins is empty".to_owned())) };
    let (before, after) = clean.split_at(last.end);
    Ok(Some(format!("{before},{entry}{after}")))
}

/// Takes the plugin out of a list where `which` says so of its entry. None where it is not there.
pub(super) fn remove(text: &str, which: impl Fn(&Value) -> bool) -> Result<Option<String>, Broken> {
    let mut text = text.to_owned();
    let mut removed = false;
    loop {
        let spans = spans(&text)?;
        let meant = |span: &&Span| {
            span.ours && serde_json::from_str(&text[span.start..span.end]).is_ok_and(|entry| which(&entry))
        };
        let Some(at) = spans.iter().position(|span| meant(&span)) else { break };
        // With the comma: before it, or after it where it is the first.
        let (start, end) = match (at.checked_sub(1).and_then(|before| spans.get(before)), spans.get(at + 1)) {
            (Some(before), _) => (before.end, spans[at].end),
            (None, Some(next)) => (spans[at].start, next.start),
            (None, None) => (spans[at].start, spans[at].end),
        };
        text.replace_range(start..end, "");
        removed = true;
    }
    Ok(removed.then_some(text))
}

/// Makes a list of the configuration of one plugin, as container runtimes do with it themselves (libcni's
/// `ConfListFromConf`), with ours at its end.
pub(super) fn from_single(text: &str, entry: &Value) -> Result<String, Broken> {
    let single: Value = serde_json::from_str(text).map_err(|error| Broken(error.to_string()))?;
    let version = single.get("cniVersion").cloned().unwrap_or_else(|| "0.3.1".into());
    let name = single.get("name").filter(|name| name.is_string());
    let Some(name) = name else { return Err(Broken("it has no name".to_owned())) };
    if !single.get("type").is_some_and(Value::is_string) {
        return Err(Broken("it has no type of plugin".to_owned()));
    }
    let single = text.trim();
    Ok(format!("{{\"cniVersion\":{version},\"name\":{name},\"plugins\":[{single},{entry}]}}\n"))
}

fn spans(text: &str) -> Result<Vec<Span>, Broken> {
    let list: List<'_> = serde_json::from_str(text).map_err(|error| Broken(error.to_string()))?;
    if !list.name.as_ref().is_some_and(Value::is_string) {
        return Err(Broken("it has no name".to_owned()));
    }
    let spans = list.plugins.iter().map(|plugin| {
        // Borrowed of `text`, so that the distance of the two is the place.
        let start = plugin.get().as_ptr().addr() - text.as_ptr().addr();
        let ours = serde_json::from_str::<Value>(plugin.get()).is_ok_and(|plugin| plugin["type"] == NAME);
        Span { start, end: start + plugin.get().len(), ours }
    });
    Ok(spans.collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const LIST: &str = "{\n  \"cniVersion\": \"1.0.0\",\n  \"name\": \"pods\",\n  \"plugins\": [\n    {\"type\": \"bridge\"},\n\t{ \"type\":\"portmap\" }  \n  ],\n  \"disableCheck\": true\n}\n\n";

    fn entry() -> Value {
        json!({ "type": NAME, "node": "a", "socket": "/run/culvert/a-cni.sock" })
    }

    #[test]
    fn what_was_put_in_comes_out_again_and_leaves_every_byte() {
        let with = insert(LIST, &entry()).unwrap().unwrap();
        assert!(with.starts_with(&LIST[..LIST.find("  \n  ]").unwrap()]), "{with}");
        let parsed: Value = serde_json::from_str(&with).unwrap();
        assert_eq!(parsed["plugins"][2], entry());
        assert_eq!(parsed["disableCheck"], true);
        assert_eq!(insert(&with, &entry()), Ok(None), "it is there");
        assert_eq!(remove(&with, |_| true).unwrap().unwrap(), LIST);
    }

    #[test]
    fn an_older_entry_and_one_in_the_middle_are_replaced() {
        let mut old = entry();
        old["socket"] = "/elsewhere".into();
        let with = insert(LIST, &old).unwrap().unwrap();
        let newer = insert(&with, &entry()).unwrap().unwrap();
        assert_eq!(newer, insert(LIST, &entry()).unwrap().unwrap());
        let middle = with.replace("}  \n", "},{\"type\":\"tuning\"}  \n");
        let moved: Value = serde_json::from_str(&insert(&middle, &old).unwrap().unwrap()).unwrap();
        let types: Vec<_> =
            moved["plugins"].as_array().unwrap().iter().map(|plugin| &plugin["type"]).collect();
        assert_eq!(types, ["bridge", "portmap", "tuning", NAME]);
    }

    #[test]
    fn only_the_entry_that_is_meant_is_taken_out() {
        let with = insert(LIST, &entry()).unwrap().unwrap();
        assert_eq!(remove(&with, |entry| entry["node"] == "b"), Ok(None));
        assert_eq!(remove(LIST, |_| true), Ok(None));
        let alone = format!("{{\"name\":\"x\",\"plugins\":[{}]}}", entry());
        assert_eq!(remove(&alone, |_| true).unwrap().unwrap(), "{\"name\":\"x\",\"plugins\":[]}");
    }

    #[test]
    fn one_plugins_configuration_becomes_a_list() {
        let single = "{ \"cniVersion\": \"0.4.0\", \"name\": \"pods\", \"type\": \"bridge\" }\n";
        let list: Value = serde_json::from_str(&from_single(single, &entry()).unwrap()).unwrap();
        assert_eq!((&list["cniVersion"], &list["name"]), (&json!("0.4.0"), &json!("pods")));
        assert_eq!(list["plugins"][0]["type"], "bridge");
        assert_eq!(list["plugins"][1], entry());
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        for text in
            ["", "{", "[]", "{\"name\":\"x\"}", "{\"name\":\"x\",\"plugins\":[]}", "{\"plugins\":[{}]}"]
        {
            assert!(insert(text, &entry()).is_err(), "{text}");
        }
        for text in ["", "{\"type\":\"bridge\"}", "{\"name\":\"x\"}"] {
            assert!(from_single(text, &entry()).is_err(), "{text}");
        }
    }
}
