//! Where `scan` begins: of what was named, each file once.
//!
//! What lies within another folder that is named is left to that one's walk, but only when the walk comes there: not
//! across a link, nor into another file system or a folder that it can't read. Asks the file systems for that, on a
//! thread that can be left behind: one that does not answer is for the engine to find out, which gets what was named.

use crate::detection::sweep::engine::ANSWER_TIME_MAX;
use crate::detection::sweep::walk::DEPTH_MAX;
use crossbeam_channel::bounded;
use rustix::fs::Access;
use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Something that is there.
struct Place {
    /// Absolute, without links.
    path: PathBuf,
    is_folder: bool,
}

/// What is named, without what the walks of the others come to. `cross`: they enter other file systems.
#[must_use]
pub fn outermost(paths: &[PathBuf], cross: bool) -> Vec<PathBuf> {
    if paths.len() < 2 {
        return paths.to_vec();
    }
    let (told, answer) = bounded(1);
    let asked = paths.to_vec();
    let thread = std::thread::Builder::new().name("roots".into()).spawn(move || {
        // Nobody listens any more when this took too long.
        let _ = told.send(within_others(&asked, cross));
    });
    let within = thread.ok().and_then(|_| answer.recv_timeout(ANSWER_TIME_MAX).ok());
    let within = within.unwrap_or_else(|| vec![false; paths.len()]);
    paths.iter().zip(within).filter(|(_, within)| !within).map(|(path, _)| path.clone()).collect()
}

/// For each path whether another one's walk comes to it.
fn within_others(paths: &[PathBuf], cross: bool) -> Vec<bool> {
    let places: Vec<Option<Place>> = paths.iter().map(|path| place(path)).collect();
    let mut order: Vec<(usize, &Place)> =
        places.iter().enumerate().filter_map(|(number, place)| Some((number, place.as_ref()?))).collect();
    order.sort_by_key(|(_, place)| place.path.components().count());
    let (mut within, mut outer) = (vec![false; paths.len()], HashMap::<&Path, &Place>::new());
    for (number, place) in order {
        let comes = place.path.ancestors().filter_map(|path| outer.get(path)).any(|other| {
            other.path == place.path || (other.is_folder && comes_to(&other.path, &place.path, cross))
        });
        if comes {
            within[number] = true;
        } else {
            outer.insert(&place.path, place);
        }
    }
    within
}

/// `None` for what is not there, and for what a walk passes over: that has to be said of what was named.
fn place(path: &Path) -> Option<Place> {
    let path = path.canonicalize().ok()?;
    let kind = path.metadata().ok()?.file_type();
    (kind.is_file() || kind.is_dir()).then(|| Place { is_folder: kind.is_dir(), path })
}

/// Whether the walk of a folder comes to what lies somewhere below it.
fn comes_to(folder: &Path, below: &Path, cross: bool) -> bool {
    let way: Vec<&Path> = below.ancestors().skip(1).take_while(|path| path.starts_with(folder)).collect();
    let device = |path: &Path| path.metadata().map(|data| data.dev()).ok();
    let own = device(folder);
    let readable = |path: &&Path| rustix::fs::access(*path, Access::READ_OK | Access::EXEC_OK).is_ok();
    let same = |path: &&Path| own.is_some() && device(path) == own;
    way.len() < DEPTH_MAX && way.iter().all(readable) && (cross || way.iter().chain([&below]).all(same))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn each_file_is_named_once_and_what_no_walk_comes_to_stays() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        std::fs::create_dir_all(root.join("a/deep/er")).unwrap();
        std::fs::create_dir_all(root.join("b")).unwrap();
        std::fs::write(root.join("a/deep/file"), "x").unwrap();
        std::fs::write(root.join("b/file"), "x").unwrap();
        symlink(root.join("b"), root.join("a/link")).unwrap();
        let check = |named: &[&str], expected: &[&str]| {
            let at = |names: &[&str]| names.iter().map(|name| root.join(name)).collect::<Vec<_>>();
            assert_eq!(outermost(&at(named), false), at(expected), "{named:?}");
        };
        check(&["a"], &["a"]);
        check(&["a", "a"], &["a"]);
        check(&["a", "a/", "a/./deep/..", "b"], &["a", "b"]);
        check(&["a/deep", "a", "a/deep/file"], &["a"]);
        check(&["a/deep/file", "a/deep/file", "a/deep/er"], &["a/deep/file", "a/deep/er"]);
        check(&["a", "a/link"], &["a", "a/link"]);
        check(&["b", "a/link", "a"], &["b", "a"]);
        check(&["a", "a/missing", "ab"], &["a", "a/missing", "ab"]);
    }
}
