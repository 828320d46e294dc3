//! Which file a number of the kernel's is: by its names, so that it is found again
//! where another server takes over.

use std::collections::HashMap;
use std::time::Instant;

use bytes::Bytes;
use kvpn_proto::v1::FileAttributes;

/// The number of what is mounted.
pub(super) const ROOT: u64 = 1;

/// More directories within each other than paths can name.
const MAX_DEPTH: usize = 2048;

/// What tells one file of a server from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    device: u64,
    inode: u64,
    born: u64,
}

impl Key {
    /// Whether it is the same file, wherever the container has it mounted: one that was
    /// started anew has mounted all of its volumes again.
    pub(super) fn is_of_same_file(self, other: Self) -> bool {
        let file = |key: Self| (key.device & u64::from(u32::MAX), key.inode, key.born);
        file(self) == file(other)
    }
}

impl From<&FileAttributes> for Key {
    fn from(attributes: &FileAttributes) -> Self {
        Self {
            device: attributes.device,
            inode: attributes.inode,
            born: attributes.born,
        }
    }
}

/// A name in the directory of this number.
type Name = (u64, Bytes);

#[derive(Debug, Default)]
struct Node {
    /// How often the kernel was told of it and has not forgotten it.
    lookups: u64,
    names: Vec<Name>,
    /// With the present server, if it was seen there.
    key: Option<Key>,
    /// Changes with each change of its contents by this laptop.
    version: u64,
    /// When this laptop changed last what a listing of it tells.
    listing_changed: Option<Instant>,
    /// The kernel's handles.
    open: Vec<u64>,
}

#[derive(Debug)]
pub(super) struct Nodes {
    nodes: HashMap<u64, Node>,
    by_name: HashMap<Name, u64>,
    by_key: HashMap<Key, u64>,
    last: u64,
    epoch: u64,
}

impl Default for Nodes {
    fn default() -> Self {
        let root = Node {
            lookups: 1,
            ..Node::default()
        };
        Self {
            nodes: HashMap::from([(ROOT, root)]),
            by_name: HashMap::new(),
            by_key: HashMap::new(),
            last: ROOT,
            epoch: 0,
        }
    }
}

impl Nodes {
    /// Notes what a server has of this name; the kernel is about to be told of it.
    pub(super) fn enter(&mut self, epoch: u64, parent: u64, name: &Bytes, key: Key) -> u64 {
        self.begin(epoch);
        let name: Name = (parent, name.clone());
        let named = self.by_name.get(&name).copied();
        let known = self.by_key.get(&key).copied();
        let id = match (known, named) {
            (Some(known), _) => known,
            // As it was called with another server.
            (None, Some(named)) if self.nodes[&named].key.is_none() => named,
            (None, _) => {
                self.last += 1;
                self.nodes.insert(self.last, Node::default());
                self.last
            }
        };
        if named != Some(id) {
            self.unname(&name);
            self.by_name.insert(name.clone(), id);
        }
        self.by_key.insert(key, id);
        if let Some(node) = self.nodes.get_mut(&id) {
            // The one by which the kernel asks next comes last.
            node.names.retain(|known| *known != name);
            node.names.push(name);
            node.key = Some(key);
            node.lookups += 1;
        }
        id
    }

    /// Whether the server's file is the one that the kernel means; forgets the name by
    /// which it was found if not.
    pub(super) fn is_same(&mut self, epoch: u64, id: u64, key: Key) -> bool {
        self.begin(epoch);
        let Some(node) = self.nodes.get_mut(&id) else {
            return false;
        };
        if node.key.is_none() && !self.by_key.contains_key(&key) {
            node.key = Some(key);
            self.by_key.insert(key, id);
        }
        self.nodes
            .get(&id)
            .is_some_and(|node| node.key == Some(key) || id == ROOT)
    }

    /// Where a server finds it, if it has a name.
    pub(super) fn path(&self, id: u64) -> Option<Bytes> {
        let mut names: Vec<&[u8]> = Vec::new();
        let mut at = id;
        while at != ROOT {
            let (parent, name) = self.nodes.get(&at)?.names.last()?;
            names.push(name);
            at = *parent;
            if names.len() > MAX_DEPTH {
                return None;
            }
        }
        names.reverse();
        Some(names.join(&b'/').into())
    }

    /// Its name, and the directory that it is in.
    pub(super) fn name(&self, id: u64) -> Option<(u64, Bytes)> {
        self.nodes.get(&id)?.names.last().cloned()
    }

    pub(super) fn by_name(&self, parent: u64, name: &Bytes) -> Option<u64> {
        self.by_name.get(&(parent, name.clone())).copied()
    }

    /// Takes back what the kernel has forgotten.
    pub(super) fn forget(&mut self, id: u64, lookups: u64) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        node.lookups = node.lookups.saturating_sub(lookups);
        if node.lookups > 0 || id == ROOT {
            return;
        }
        if let Some(node) = self.nodes.remove(&id) {
            for name in node.names {
                self.by_name.remove(&name);
            }
            if let Some(key) = node.key {
                self.by_key.remove(&key);
            }
        }
    }

    /// Forgets a file's name that led to nothing, or to another file.
    pub(super) fn misled(&mut self, id: u64, parent: u64, name: &Bytes) {
        if self.by_name(parent, name) == Some(id) {
            self.remove(parent, name);
        }
    }

    /// Forgets a name that is no longer there.
    pub(super) fn remove(&mut self, parent: u64, name: &Bytes) {
        self.unname(&(parent, name.clone()));
    }

    pub(super) fn rename(&mut self, from: (u64, &Bytes), to: (u64, &Bytes), exchange: bool) {
        let from: Name = (from.0, from.1.clone());
        let to: Name = (to.0, to.1.clone());
        let moved = self.unname(&from);
        let replaced = self.unname(&to);
        self.name_again(moved, to);
        if exchange {
            self.name_again(replaced, from);
        }
    }

    pub(super) fn version(&self, id: u64) -> u64 {
        self.nodes.get(&id).map_or(0, |node| node.version)
    }

    /// Notes a change of its contents.
    pub(super) fn changed(&mut self, id: u64) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        node.version += 1;
        let parents: Vec<u64> = node.names.iter().map(|(parent, _)| *parent).collect();
        for parent in parents {
            self.listing_changed(parent);
        }
    }

    /// Notes a change of what a listing of the directory tells.
    pub(super) fn listing_changed(&mut self, id: u64) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.listing_changed = Some(Instant::now());
        }
    }

    /// Whether what was listed at that time is what there is, as far as this laptop and
    /// the stream go.
    pub(super) fn is_listing_true(&self, id: u64, epoch: u64, at: Instant) -> bool {
        let changed = self.nodes.get(&id).and_then(|node| node.listing_changed);
        epoch >= self.epoch && changed.is_none_or(|changed| changed < at)
    }

    pub(super) fn opened(&mut self, id: u64, handle: u64) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.open.push(handle);
        }
    }

    pub(super) fn closed(&mut self, id: u64, handle: u64) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.open.retain(|open| *open != handle);
        }
    }

    /// The kernel's handles of it.
    pub(super) fn handles(&self, id: u64) -> Vec<u64> {
        self.nodes
            .get(&id)
            .map(|node| node.open.clone())
            .unwrap_or_default()
    }

    /// Forgets what the servers before had, which may not be the same as this one's.
    fn begin(&mut self, epoch: u64) {
        if epoch > self.epoch {
            self.epoch = epoch;
            self.by_key.clear();
            for node in self.nodes.values_mut() {
                node.key = None;
            }
        }
    }

    fn unname(&mut self, name: &Name) -> Option<u64> {
        let id = self.by_name.remove(name)?;
        if let Some(node) = self.nodes.get_mut(&id) {
            node.names.retain(|known| known != name);
        }
        Some(id)
    }

    fn name_again(&mut self, id: Option<u64>, name: Name) {
        if let Some(id) = id
            && let Some(node) = self.nodes.get_mut(&id)
        {
            node.names.push(name.clone());
            self.by_name.insert(name, id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(inode: u64) -> Key {
        Key {
            device: 1,
            inode,
            born: 0,
        }
    }

    fn name(name: &'static str) -> Bytes {
        Bytes::from_static(name.as_bytes())
    }

    #[test]
    fn file_with_two_names_is_one_and_is_found_by_the_one_that_is_left() {
        let mut nodes = Nodes::default();
        let dir = nodes.enter(1, ROOT, &name("dir"), key(2));
        let a = nodes.enter(1, dir, &name("a"), key(3));
        assert_eq!(nodes.enter(1, ROOT, &name("b"), key(3)), a);
        nodes.remove(ROOT, &name("b"));
        assert_eq!(nodes.path(a).unwrap(), "dir/a");
        nodes.remove(dir, &name("a"));
        assert_eq!(nodes.path(a), None);
    }

    #[test]
    fn file_is_found_by_the_name_that_was_looked_up_last() {
        let mut nodes = Nodes::default();
        let file = nodes.enter(1, ROOT, &name("final"), key(3));
        nodes.enter(1, ROOT, &name("tmp"), key(3));
        assert_eq!(nodes.path(file).unwrap(), "tmp");
        assert_eq!(nodes.enter(1, ROOT, &name("final"), key(3)), file);
        assert_eq!(nodes.path(file).unwrap(), "final");
        nodes.misled(file, ROOT, &name("final"));
        assert_eq!(nodes.path(file).unwrap(), "tmp");
    }

    #[test]
    fn listing_is_not_true_any_more_once_this_laptop_changes_one_of_its_files() {
        let mut nodes = Nodes::default();
        let dir = nodes.enter(1, ROOT, &name("dir"), key(2));
        let file = nodes.enter(1, dir, &name("file"), key(3));
        let before = Instant::now();
        assert!(nodes.is_listing_true(dir, 1, before));
        nodes.changed(file);
        assert!(!nodes.is_listing_true(dir, 1, before));
        assert!(nodes.is_listing_true(ROOT, 1, before));
        nodes.enter(2, ROOT, &name("dir"), key(9));
        assert!(!nodes.is_listing_true(ROOT, 1, before));
    }

    #[test]
    fn name_that_another_file_has_by_now_is_left_to_it() {
        let mut nodes = Nodes::default();
        let old = nodes.enter(1, ROOT, &name("file"), key(2));
        let new = nodes.enter(1, ROOT, &name("file"), key(3));
        nodes.misled(old, ROOT, &name("file"));
        assert_eq!(nodes.path(new).unwrap(), "file");
    }

    #[test]
    fn files_in_a_renamed_directory_are_found_by_its_new_name() {
        let mut nodes = Nodes::default();
        let dir = nodes.enter(1, ROOT, &name("dir"), key(2));
        let a = nodes.enter(1, dir, &name("a"), key(3));
        nodes.rename((ROOT, &name("dir")), (ROOT, &name("new")), false);
        assert_eq!(nodes.path(a).unwrap(), "new/a");
        let other = nodes.enter(1, ROOT, &name("other"), key(4));
        nodes.rename((ROOT, &name("new")), (ROOT, &name("other")), true);
        assert_eq!(nodes.path(a).unwrap(), "other/a");
        assert_eq!(nodes.path(other).unwrap(), "new");
    }

    #[test]
    fn another_file_of_the_same_name_is_another_one() {
        let mut nodes = Nodes::default();
        let old = nodes.enter(1, ROOT, &name("..data"), key(2));
        let new = nodes.enter(1, ROOT, &name("..data"), key(3));
        assert_ne!(old, new);
        assert_eq!(nodes.path(old), None);
        assert!(!nodes.is_same(1, old, key(3)));
        assert!(nodes.is_same(1, new, key(3)));
    }

    #[test]
    fn file_is_found_by_its_name_where_another_server_has_it() {
        let mut nodes = Nodes::default();
        let file = nodes.enter(1, ROOT, &name("file"), key(2));
        let gone = nodes.enter(1, ROOT, &name("gone"), key(3));
        assert_eq!(nodes.enter(2, ROOT, &name("file"), key(9)), file);
        // What was another one's number is not taken for it.
        assert_ne!(nodes.enter(2, ROOT, &name("new"), key(3)), gone);
        assert_eq!(nodes.path(gone).unwrap(), "gone");
    }

    #[test]
    fn forgotten_file_leaves_nothing_behind() {
        let mut nodes = Nodes::default();
        let file = nodes.enter(1, ROOT, &name("file"), key(2));
        nodes.enter(1, ROOT, &name("file"), key(2));
        nodes.forget(file, 1);
        assert_eq!(nodes.path(file).unwrap(), "file");
        nodes.forget(file, 1);
        assert_eq!(nodes.path(file), None);
        assert!(nodes.by_name.is_empty() && nodes.by_key.is_empty());
        nodes.forget(ROOT, 5);
        assert_eq!(nodes.path(ROOT).unwrap(), "");
    }
}
