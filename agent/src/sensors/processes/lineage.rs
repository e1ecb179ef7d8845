//! Parents, and their parents, up to init: links that outlive the processes, as long as a child lives.
//!
//! Pure. A link is made once for each image of a parent and shared by all its children. Goes into the table's
//! descriptions.

use super::image::SharedImage;
use std::rc::Rc;
use vidette_protocol::limits::ANCESTORS_MAX;
use vidette_protocol::wire;

/// Links in one chain. Beyond it the oldest are left out when the next generation is born.
const DEPTH_MAX: usize = 2 * (ANCESTORS_MAX + 1);

/// A process as it was when it forked.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) pid: u32,
    /// Empty when its start is not known.
    pub(super) entity_id: String,
    pub(super) image: SharedImage,
    pub(super) parent: Option<Rc<Link>>,
    depth: usize,
}

impl Link {
    pub(super) fn new(pid: u32, entity_id: String, image: SharedImage, parent: Option<Rc<Self>>) -> Rc<Self> {
        let mut parent = parent;
        if parent.as_ref().is_some_and(|parent| parent.depth >= DEPTH_MAX) {
            parent = parent.and_then(|parent| parent.shortened(ANCESTORS_MAX));
        }
        let depth = 1 + parent.as_ref().map_or(0, |parent| parent.depth);
        Rc::new(Self { pid, entity_id, image, parent, depth })
    }

    /// A copy of its first `count` links.
    fn shortened(&self, count: usize) -> Option<Rc<Self>> {
        if count == 0 {
            return None;
        }
        let parent = self.parent.as_ref().and_then(|parent| parent.shortened(count - 1));
        let depth = 1 + parent.as_ref().map_or(0, |parent| parent.depth);
        Some(Rc::new(Self { parent, depth, ..self.clone() }))
    }

    /// As the direct parent of somebody.
    pub(super) fn describe(&self) -> wire::ParentProcess {
        let image = self.image.borrow();
        wire::ParentProcess {
            entity_id: self.entity_id.clone(),
            pid: self.pid,
            executable: image.executable.clone(),
            args: image.args.list.clone(),
            name: image.name.clone(),
        }
    }

    /// Its parent first, then that one's.
    pub(super) fn ancestors(&self) -> Vec<wire::Ancestor> {
        let links = std::iter::successors(self.parent.as_ref(), |link| link.parent.as_ref());
        let ancestor = |link: &Rc<Self>| {
            let image = link.image.borrow();
            wire::Ancestor {
                entity_id: link.entity_id.clone(),
                pid: link.pid,
                executable: image.executable.clone(),
                name: image.name.clone(),
            }
        };
        links.take(ANCESTORS_MAX).map(ancestor).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_of_any_length_keeps_the_nearest_and_stays_short() {
        let mut link = Link::new(0, String::new(), SharedImage::default(), None);
        for pid in 1..100_000 {
            link = Link::new(pid, String::new(), SharedImage::default(), Some(link));
            assert!(link.depth <= DEPTH_MAX + 1);
        }
        let pids: Vec<u32> = link.ancestors().into_iter().map(|ancestor| ancestor.pid).collect();
        let expected: Vec<u32> =
            (0..ANCESTORS_MAX).filter_map(|at| 99_998u32.checked_sub(u32::try_from(at).ok()?)).collect();
        assert_eq!(pids, expected);
    }
}
