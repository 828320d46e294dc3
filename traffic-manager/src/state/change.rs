//! What a watch tells, and a table that follows it.

use std::collections::{BTreeMap, HashSet};

use super::Key;

/// An object of the API server, cut down to what is needed of it.
pub(crate) trait Identified {
    fn key(&self) -> &Key;
    fn uid(&self) -> &str;
}

/// One event of a watch.
#[derive(Clone, Debug)]
pub(crate) enum Change<T> {
    /// All there is now, in one namespace or in all.
    Listed {
        namespace: Option<String>,
        items: Vec<T>,
    },
    Applied(T),
    Deleted(T),
}

impl<T> Change<T> {
    /// The same event with every object turned into something else.
    pub(crate) fn map<U>(self, turn: impl Fn(T) -> U) -> Change<U> {
        match self {
            Self::Listed { namespace, items } => Change::Listed {
                namespace,
                items: items.into_iter().map(turn).collect(),
            },
            Self::Applied(item) => Change::Applied(turn(item)),
            Self::Deleted(item) => Change::Deleted(turn(item)),
        }
    }
}

impl<T: Identified> Change<T> {
    /// Breaks the event into objects that came or changed, and objects that
    /// are gone from `known`. An object that was made anew under the same name
    /// appears in both, and those gone come first.
    pub(crate) fn resolve<V: Identified>(self, known: &BTreeMap<Key, V>) -> (Vec<Key>, Vec<T>) {
        let replaced = |item: &T| {
            known
                .get(item.key())
                .is_some_and(|old| old.uid() != item.uid())
        };
        match self {
            Self::Listed { namespace, items } => {
                let uids: HashSet<&str> = items.iter().map(Identified::uid).collect();
                let gone = known
                    .iter()
                    .filter(|(key, _)| namespace.as_ref().is_none_or(|ns| *ns == key.namespace))
                    .filter(|(_, old)| !uids.contains(old.uid()))
                    .map(|(key, _)| key.clone())
                    .collect();
                (gone, items)
            }
            Self::Applied(item) => {
                let gone = replaced(&item).then(|| item.key().clone());
                (gone.into_iter().collect(), vec![item])
            }
            Self::Deleted(item) => {
                let known = known
                    .get(item.key())
                    .is_some_and(|old| old.uid() == item.uid());
                (
                    known.then(|| item.key().clone()).into_iter().collect(),
                    vec![],
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    struct Object(Key, &'static str);

    impl Identified for Object {
        fn key(&self) -> &Key {
            &self.0
        }

        fn uid(&self) -> &str {
            self.1
        }
    }

    fn object(namespace: &str, name: &str, uid: &'static str) -> Object {
        Object(Key::new(namespace, name), uid)
    }

    fn known() -> BTreeMap<Key, Object> {
        [
            object("a", "x", "1"),
            object("a", "y", "2"),
            object("b", "z", "3"),
        ]
        .into_iter()
        .map(|object| (object.0.clone(), object))
        .collect()
    }

    #[test]
    fn a_list_of_one_namespace_removes_only_there() {
        let change = Change::Listed {
            namespace: Some("a".into()),
            items: vec![object("a", "x", "1")],
        };
        let (gone, present) = change.resolve(&known());
        assert_eq!(gone, [Key::new("a", "y")]);
        assert_eq!(present, [object("a", "x", "1")]);
    }

    #[test]
    fn a_list_of_all_removes_everywhere() {
        let change = Change::Listed {
            namespace: None,
            items: vec![object("a", "x", "1")],
        };
        let (gone, _) = change.resolve(&known());
        assert_eq!(gone, [Key::new("a", "y"), Key::new("b", "z")]);
    }

    #[test]
    fn a_namesake_replaces_the_old_object() {
        let (gone, present) = Change::Applied(object("a", "x", "9")).resolve(&known());
        assert_eq!(gone, [Key::new("a", "x")]);
        assert_eq!(present, [object("a", "x", "9")]);
    }

    #[test]
    fn a_late_deletion_spares_the_namesake() {
        let (gone, present) = Change::Deleted(object("a", "x", "0")).resolve(&known());
        assert!(gone.is_empty() && present.is_empty());
    }
}
