//! What a process runs, and what somebody said of it: shared by a process and whatever it forks.
//!
//! Pure. Assumes nothing; bounds everything. Goes into the process table.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use vidette_protocol::limits::{ARGS_BYTES_MAX, ARGS_MAX, NAME_BYTES_MAX, PATH_BYTES_MAX};
use vidette_protocol::wire;

/// What somebody could say of a process. Only `pid` is certain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Thread group id.
    pub(crate) pid: u32,
    /// CLOCK_BOOTTIME of its start, nanoseconds.
    pub(crate) start_ns: Option<u64>,
    /// Its parent's pid.
    pub(crate) parent: u32,
    /// `comm`.
    pub(crate) name: Vec<u8>,
    /// Path of its image.
    pub(crate) executable: Vec<u8>,
    /// Arguments.
    pub(crate) args: Vec<Vec<u8>>,
    /// Working directory.
    pub(crate) working_directory: Vec<u8>,
    /// Effective user.
    pub(crate) uid: Option<u32>,
    /// Effective group.
    pub(crate) gid: Option<u32>,
    /// Who logged in.
    pub(crate) login_uid: Option<u32>,
    /// Audit session.
    pub(crate) login_session: Option<u32>,
    /// Pid of the session's leader.
    pub(crate) session: Option<u32>,
    /// Path of its control group; empty when nobody could say.
    pub(crate) cgroup: Vec<u8>,
}

/// What a process runs. Shared by a process and what it forked.
#[derive(Debug, Default)]
pub(super) struct Image {
    pub(super) executable: Vec<u8>,
    pub(super) args: Args,
    pub(super) name: Vec<u8>,
    pub(super) working_directory: Vec<u8>,
    /// Of the executable.
    pub(super) source: wire::Source,
    /// Of arguments, name and working directory.
    pub(super) args_source: wire::Source,
}

pub(super) type SharedImage = Rc<RefCell<Image>>;

/// Arguments, and the sum over all images that they are part of.
#[derive(Debug, Default)]
pub(super) struct Args {
    pub(super) list: Vec<Vec<u8>>,
    sum: Rc<Cell<usize>>,
}

impl Args {
    fn bytes(&self) -> usize {
        self.list.iter().map(Vec::len).sum()
    }
}

impl Drop for Args {
    fn drop(&mut self) {
        self.sum.set(self.sum.get().saturating_sub(self.bytes()));
    }
}

impl Image {
    /// With the arguments while all images together keep to `args_bytes_max`; `sum` is what they have.
    pub(super) fn new(
        facts: &Facts,
        source: wire::Source,
        args_source: wire::Source,
        sum: &Rc<Cell<usize>>,
        args_bytes_max: usize,
    ) -> Self {
        let mut list = facts.args.clone();
        cut_args(&mut list);
        let bytes: usize = list.iter().map(Vec::len).sum();
        if sum.get().saturating_add(bytes) > args_bytes_max {
            list.clear();
        }
        let args = Args { list, sum: sum.clone() };
        sum.set(sum.get().saturating_add(args.bytes()));
        Self {
            executable: cut(&facts.executable, PATH_BYTES_MAX),
            args,
            name: cut(&facts.name, NAME_BYTES_MAX),
            working_directory: cut(&facts.working_directory, PATH_BYTES_MAX),
            source,
            args_source,
        }
    }

    /// Forgets what was read for another image.
    pub(super) fn forget_args(&mut self) {
        self.args = Args::default();
        self.name.clear();
        self.args_source = wire::Source::None;
    }
}

/// Cuts to the limits of the contract.
pub(crate) fn cut_args(args: &mut Vec<Vec<u8>>) {
    let mut room = ARGS_BYTES_MAX;
    args.truncate(ARGS_MAX);
    for argument in args {
        argument.truncate(room);
        room -= argument.len();
    }
}

pub(super) fn cut(bytes: &[u8], max: usize) -> Vec<u8> {
    bytes.get(..max).unwrap_or(bytes).to_vec()
}
