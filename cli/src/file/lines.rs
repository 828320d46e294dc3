//! Where something is in a text of YAML.

use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// The line of what is at a path such as `engagements[1].ports[0]`; of what should have it
/// where it is not there.
pub(super) fn line(text: &str, path: &str) -> Option<usize> {
    let keys = path.split(['.', '[']).map(|it| it.trim_end_matches(']'));
    let keys: Vec<&str> = keys.filter(|key| !key.is_empty()).collect();
    let sought = Seek(&keys).deserialize(serde_yaml::Deserializer::from_str(text));
    sought.err()?.location().map(|it| it.line())
}

/// Goes to what has these keys, and fails there: errors are what has locations.
struct Seek<'a>(&'a [&'a str]);

impl<'de> DeserializeSeed<'de> for Seek<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seek<'_> {
    type Value = ();

    /// Of all that has nothing in it.
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("what is sought")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            match self.0.split_first() {
                Some((first, rest)) if key == *first => return map.next_value_seed(Seek(rest)),
                Some(_) => drop(map.next_value::<IgnoredAny>()?),
                None => break,
            }
        }
        Err(A::Error::custom("here"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Some((first, rest)) = self.0.split_first() else {
            return Err(A::Error::custom("here"));
        };
        let index: usize = first.parse().map_err(A::Error::custom)?;
        for _ in 0..index {
            seq.next_element::<IgnoredAny>()?;
        }
        match seq.next_element_seed(Seek(rest))? {
            Some(()) => Ok(()),
            None => Err(A::Error::custom("here")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_in_every_style() {
        let text = "\
# A comment.
connections:
  - name: dev

engagements:
  - intercept: web
    ports:
      - 8080
      - \"9090:http\"
    filter: {headers: [a,
      b]}
  - {ingest: api,
     run: |
       one
       two
    }
";
        for (path, expected) in [
            ("connections", 3),
            ("connections[0].name", 3),
            ("engagements[0]", 6),
            ("engagements[0].ports[0]", 8),
            ("engagements[0].ports[1]", 9),
            ("engagements[0].filter.headers[1]", 11),
            // Of what should have them.
            ("engagements[0].ports[7]", 8),
            ("engagements[0].container", 6),
            ("engagements[0].intercept.name", 6),
        ] {
            assert_eq!(line(text, path), Some(expected), "{path}");
        }
        assert_eq!(line("a: 1\n", ""), Some(1));
    }
}
