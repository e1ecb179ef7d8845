//! Folders where something happened lately, the latest first: after a loss they are looked at before others. Pure.

/// Folders that are remembered.
pub const HOT_MAX: usize = 32;

/// The list.
#[derive(Debug, Clone, Default)]
pub struct Hot {
    /// The latest last.
    folders: Vec<Vec<u8>>,
}

impl Hot {
    /// Something happened to a file with this path.
    pub fn file(&mut self, path: &[u8]) {
        let Some(end) = path.iter().rposition(|byte| *byte == b'/') else { return };
        self.folder(path.get(..end.max(1)).unwrap_or_default());
    }

    /// Something happened in this folder.
    pub fn folder(&mut self, folder: &[u8]) {
        match self.folders.iter().rposition(|known| known == folder) {
            Some(place) if place + 1 == self.folders.len() => {}
            Some(place) => {
                if let Some(rest) = self.folders.get_mut(place..) {
                    rest.rotate_left(1);
                }
            }
            None => {
                if self.folders.len() >= HOT_MAX {
                    self.folders.remove(0);
                }
                self.folders.push(folder.to_vec());
            }
        }
    }

    /// All of them, the latest first.
    #[must_use]
    pub fn list(&self) -> Vec<Vec<u8>> {
        self.folders.iter().rev().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_folders_are_kept_the_latest_first() {
        let mut hot = Hot::default();
        for path in [&b"/a/1"[..], b"/b/1", b"/a/2", b"/top", b"none", b"/a/3"] {
            hot.file(path);
        }
        assert_eq!(hot.list(), [b"/a".to_vec(), b"/".to_vec(), b"/b".to_vec()]);
        for number in 0..100 {
            hot.file(format!("/{number}/x").as_bytes());
        }
        assert_eq!(hot.list().len(), HOT_MAX);
        assert_eq!(hot.list().first().map(Vec::as_slice), Some(&b"/99"[..]));
    }
}
