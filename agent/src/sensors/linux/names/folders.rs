//! Paths of folders by their handles: a bounded cache.
//!
//! Pure. Assumes that it is told of every rename in the kernel's order; after a loss it is cleared. A folder that
//! was deleted stays until it is pushed out, because events about what was in it still come. The paths go into
//! observations and filters, never to open anything.

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

/// Folders in each half.
const HALF_FOLDERS_MAX: usize = 8192;
/// Paths and handles in each half. Bytes.
const HALF_BYTES_MAX: usize = 2 << 20;

type Bytes = Rc<[u8]>;

/// The cache. What is used moves to the young half; when that is full the old half goes.
#[derive(Debug, Default)]
pub(crate) struct Folders {
    young: Half,
    old: Half,
}

#[derive(Debug, Default)]
struct Half {
    paths: HashMap<Bytes, Bytes>,
    /// (path, handle): a deleted folder may have the path of a living one.
    by_path: BTreeSet<(Bytes, Bytes)>,
    bytes: usize,
}

impl Folders {
    /// The path of a folder.
    pub(crate) fn get(&mut self, handle: &[u8]) -> Option<Bytes> {
        if let Some(path) = self.young.paths.get(handle) {
            return Some(path.clone());
        }
        let (handle, path) = self.old.remove(handle)?;
        self.put(handle, path.clone());
        Some(path)
    }

    /// A folder has this path now.
    pub(crate) fn insert(&mut self, handle: &[u8], path: &[u8]) {
        self.old.remove(handle);
        self.put(handle.into(), path.into());
    }

    /// What had this path, or one below it, may have another now.
    pub(crate) fn moved(&mut self, path: &[u8]) {
        self.young.remove_below(path);
        self.old.remove_below(path);
    }

    /// Forgets all.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    fn put(&mut self, handle: Bytes, path: Bytes) {
        self.young.remove(&handle);
        if self.young.paths.len() >= HALF_FOLDERS_MAX
            || self.young.bytes + handle.len() + path.len() > HALF_BYTES_MAX
        {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.bytes += handle.len() + path.len();
        self.young.by_path.insert((path.clone(), handle.clone()));
        self.young.paths.insert(handle, path);
    }
}

impl Half {
    fn remove(&mut self, handle: &[u8]) -> Option<(Bytes, Bytes)> {
        let (handle, path) = self.paths.remove_entry(handle)?;
        self.bytes = self.bytes.saturating_sub(handle.len() + path.len());
        self.by_path.remove(&(path.clone(), handle.clone()));
        Some((handle, path))
    }

    fn remove_below(&mut self, path: &[u8]) {
        let from = |path: &[u8]| (Bytes::from(path), Bytes::from([]));
        let at = self.by_path.range(from(path)..).take_while(|(one, _)| **one == *path);
        let mut gone: Vec<Bytes> = at.map(|(_, handle)| handle.clone()).collect();
        let mut prefix = path.to_vec();
        prefix.push(b'/');
        let below = self.by_path.range(from(&prefix)..).take_while(|(one, _)| one.starts_with(&prefix));
        gone.extend(below.map(|(_, handle)| handle.clone()));
        for handle in gone {
            self.remove(&handle);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn got(folders: &mut Folders, handle: &[u8]) -> Option<Vec<u8>> {
        folders.get(handle).map(|path| path.to_vec())
    }

    #[test]
    fn a_rename_drops_what_was_at_and_below_the_old_path_and_nothing_else() {
        let mut folders = Folders::default();
        let all: [(&[u8], &[u8]); 6] = [
            (b"1", b"/a"),
            (b"2", b"/a/b"),
            (b"3", b"/a/b/c"),
            (b"4", b"/ab"),
            (b"5", b"/a/b"),
            (b"6", b"/a!"),
        ];
        for (handle, path) in all {
            folders.insert(handle, path);
        }
        folders.moved(b"/a/b");
        for (handle, path) in all {
            let kept = !path.starts_with(b"/a/b");
            assert_eq!(got(&mut folders, handle), kept.then(|| path.to_vec()), "{}", path.escape_ascii());
        }
        folders.moved(b"/a");
        assert_eq!((got(&mut folders, b"1"), got(&mut folders, b"6")), (None, Some(b"/a!".to_vec())));
        assert_eq!(folders.young.by_path.len(), 2);
        assert_eq!(folders.young.bytes, 1 + 3 + 1 + 3);
    }

    #[test]
    fn a_folder_with_a_new_path_has_only_that() {
        let mut folders = Folders::default();
        folders.insert(b"1", b"/a");
        folders.insert(b"1", b"/b");
        folders.moved(b"/a");
        assert_eq!(got(&mut folders, b"1"), Some(b"/b".to_vec()));
        folders.clear();
        assert_eq!(got(&mut folders, b"1"), None);
    }

    #[test]
    fn it_stays_within_its_bounds_and_keeps_what_is_used() {
        let mut folders = Folders::default();
        folders.insert(b"used", b"/used");
        for number in 0..5 * HALF_FOLDERS_MAX {
            folders.insert(&number.to_ne_bytes(), format!("/{number}").as_bytes());
            if number % 1000 == 0 {
                assert!(folders.get(b"used").is_some(), "{number}");
            }
        }
        let count = folders.young.paths.len() + folders.old.paths.len();
        assert!((HALF_FOLDERS_MAX..=2 * HALF_FOLDERS_MAX).contains(&count), "{count}");
        for number in 0..5000u32 {
            folders.insert(&number.to_ne_bytes(), &[b'x'; 4000]);
        }
        assert!(folders.young.bytes <= HALF_BYTES_MAX && folders.old.bytes <= HALF_BYTES_MAX);
        assert_eq!(folders.young.paths.len(), folders.young.by_path.len());
    }

    /// By seed: renames and lookups against a model that knows every path.
    #[test]
    fn what_it_says_is_never_a_path_from_before_a_rename() {
        for seed in 0..200u64 {
            println!("seed {seed}");
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut random = move |below: usize| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                usize::try_from(state >> 33).unwrap_or(0) % below
            };
            let names: [&[u8]; 4] = [b"a", b"ab", b"a/b", b"b"];
            let mut model: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
            let mut folders = Folders::default();
            for step in 0..200usize {
                let mut path = b"/".to_vec();
                path.extend(names.get(random(4)).copied().unwrap_or_default());
                if random(3) == 0 {
                    folders.moved(&path);
                    let below = [&path[..], b"/"].concat();
                    model.retain(|_, one| *one != path && !one.starts_with(&below));
                } else {
                    path.extend([b"/", &b"xyz"[random(3)..]].concat());
                    let handle = vec![u8::try_from(step % 50).unwrap_or(0)];
                    folders.insert(&handle, &path);
                    model.insert(handle, path);
                }
                for handle in 0..50u8 {
                    assert_eq!(got(&mut folders, &[handle]).as_ref(), model.get(&vec![handle]));
                }
            }
        }
    }
}
