//! The query of a URL: `model=x&tools=1`.

use super::path;

/// The pairs of a query.
#[derive(Debug, Clone, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Takes a query apart. A pair whose escapes are broken is left out.
    pub fn read(query: Option<&str>) -> Query {
        let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.filter_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((path::decode(name)?, path::decode(value)?))
        });
        Query(pairs.collect())
    }

    /// The first value of that name.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The same as a number.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }

    /// Whether it is there and not `0`.
    pub fn is_set(&self, name: &str) -> bool {
        self.text(name).is_some_and(|value| value != "0")
    }
}

/// A value as it may stand in a query.
pub fn escaped(value: &str) -> String {
    path::escape(value, b"-_.~")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_read_and_broken_ones_are_not_there() {
        let query = Query::read(Some("model=a%2Fb%3Ax%40gpu&after=12&tools&vision=0&bad=%zz&run="));
        assert_eq!(query.text("model"), Some("a/b:x@gpu"));
        assert_eq!((query.number("after"), query.number("model")), (Some(12), None));
        assert!(query.is_set("tools") && !query.is_set("vision") && !query.is_set("thinking"));
        assert_eq!((query.text("bad"), query.text("run")), (None, Some("")));
        for value in ["a/b:x@gpu", "1 + 1 = 2 & more", "größe", ""] {
            let query = Query::read(Some(&format!("v={}", escaped(value))));
            assert_eq!(query.text("v"), Some(value));
        }
        assert!(Query::read(None).text("").is_none());
    }
}
