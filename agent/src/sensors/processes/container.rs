//! The container that a control group belongs to, from its path.
//!
//! Pure. Assumes the names that container managers give to control groups: docker, containerd, CRI-O, podman,
//! LXC, Kubernetes, systemd-nspawn. Whoever may make control groups may call them so: it is a label, not a
//! proof. Goes into the process table.

use vidette_protocol::limits::NAME_BYTES_MAX;

/// Hex digits of a container's id, as docker, containerd, CRI-O and podman make them.
const ID_DIGITS: usize = 64;
/// Containers whose manager gives them a name and no id: prefix of the component, suffix that is cut.
const NAMED: [(&[u8], &[u8]); 3] =
    [(b"lxc.payload.", b""), (b"machine-", b".scope"), (b"systemd-nspawn@", b".service")];

/// The innermost container; empty when the path names none.
#[must_use]
pub(super) fn container_id(cgroup: &[u8]) -> String {
    let mut before: &[u8] = b"";
    let mut found = None;
    for component in cgroup.split(|&byte| byte == b'/') {
        found = id(component).or_else(|| name(before, component)).or(found);
        before = component;
    }
    let mut found = String::from_utf8_lossy(found.unwrap_or_default()).into_owned();
    found.truncate(found.floor_char_boundary(NAME_BYTES_MAX));
    found
}

/// `docker-ID.scope`, `cri-containerd-ID.scope`, `crio-ID`, `libpod-ID.scope`, `libpod-conmon-ID.scope` (the
/// one that watches over it, which is not in it), `kubepods…:cri-containerd:ID`, `ID`.
fn id(component: &[u8]) -> Option<&[u8]> {
    let component = component.strip_suffix(b".scope").unwrap_or(component);
    let (kind, id) = component.split_at_checked(component.len().checked_sub(ID_DIGITS)?)?;
    let digits = id.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let bounded = kind.is_empty() || kind.ends_with(b"-") || kind.ends_with(b":");
    (digits && bounded && !kind.ends_with(b"conmon-")).then_some(id)
}

/// `/lxc/NAME`, and those of [`NAMED`].
fn name<'a>(before: &[u8], component: &'a [u8]) -> Option<&'a [u8]> {
    let named = NAMED.into_iter().find_map(|(prefix, suffix)| {
        component.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(suffix))
    });
    let named = named.or_else(|| (before == b"lxc").then_some(component));
    named.filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_paths_give_their_containers() {
        let id = "4fa6e0f0c6786287e131c3852c58a2e01cc697a68231826813597e4994f1d6e2";
        let pod = "kubepods-besteffort-pod28b92b1c_9a5b_4d1a_8d4e_0d3c2a6f1b7e.slice";
        for (path, expected) in [
            (format!("/docker/{id}"), id),
            (format!("/system.slice/docker-{id}.scope"), id),
            (format!("/system.slice/docker-{id}.scope/init.scope"), id),
            (format!("/kubepods.slice/kubepods-besteffort.slice/{pod}/cri-containerd-{id}.scope"), id),
            (format!("/kubepods/burstable/pod28b92b1c-9a5b-4d1a-8d4e-0d3c2a6f1b7e/{id}"), id),
            (format!("/kubepods.slice/{pod}/crio-{id}.scope/container"), id),
            (format!("/system.slice/containerd.service/{pod}:cri-containerd:{id}"), id),
            (format!("/default/{id}"), id),
            (format!("/machine.slice/libpod-{id}.scope/container"), id),
            (format!("/machine.slice/libpod-conmon-{id}.scope"), ""),
            (format!("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{id}.scope"), id),
            (format!("/ecs/0123-task/{id}"), id),
            (format!("/docker/{id}/docker/{}", id.replace('4', "5")), &id.replace('4', "5")),
            ("/lxc.payload.web/system.slice/cron.service".into(), "web"),
            ("/lxc/web".into(), "web"),
            ("/lxc.monitor.web".into(), ""),
            ("/machine.slice/machine-debian.scope/payload".into(), "debian"),
            ("/machine.slice/systemd-nspawn@arch.service/payload".into(), "arch"),
            ("/user.slice/user-1000.slice/session-2.scope".into(), ""),
            ("/system.slice/docker.service".into(), ""),
            ("/".into(), ""),
            (String::new(), ""),
            (format!("/system.slice/x{id}"), ""),
            (format!("/docker/{}", id.to_uppercase()), ""),
            (format!("/docker/{}", &id[1..]), ""),
        ] {
            assert_eq!(container_id(path.as_bytes()), expected, "{path}");
        }
    }

    #[test]
    fn names_that_are_no_text_or_endless_give_something_short() {
        assert_eq!(container_id(b"/lxc/\xff"), "\u{fffd}");
        let long = [b"/lxc/".to_vec(), vec![b'a'; 9000]].concat();
        assert_eq!(container_id(&long).len(), NAME_BYTES_MAX);
    }
}
