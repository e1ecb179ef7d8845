//! A network of two: the agent's end of a cable on this host, the collector's in a network namespace of its own.
//!
//! Needs root, `ip` and `nft`. The collector moves, not the agent: the process connector answers in the first namespace
//! only. Packets are dropped as they enter and leave the collector's end, where the sender does not hear of it. Dropping
//! this removes cable and namespace.

use anyhow::{Context, ensure};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// A cable as it is made. Bytes.
const MTU: u32 = 1500;
/// Works whether there are any or not.
const NO_RULES: &str = "add table netdev faults; delete table netdev faults;";

/// The cable.
#[derive(Debug)]
pub struct Link {
    namespace: String,
    /// The agent's end.
    near: String,
    /// The collector's end.
    far: String,
    /// First three numbers of the addresses.
    net: [u8; 3],
    /// The agent's last number.
    own: u8,
}

impl Link {
    /// Lays one, with names and addresses (of the block for benchmarks, RFC 2544) that nobody else uses.
    ///
    /// # Errors
    /// Without root, or without `ip`.
    pub fn lay() -> anyhow::Result<Self> {
        let name: u16 = rand::random();
        let link = Self {
            namespace: format!("vidette-{}-{name:x}", std::process::id()),
            near: format!("vdn{:x}{name:x}", std::process::id() % 0xffff),
            far: format!("vdf{:x}{name:x}", std::process::id() % 0xffff),
            net: [198, 18 + (rand::random::<u8>() & 1), rand::random()],
            own: 1,
        };
        run("ip", &["netns", "add", &link.namespace])?;
        let (near, far, namespace) = (&link.near, &link.far, &link.namespace);
        run("ip", &["link", "add", near, "type", "veth", "peer", "name", far, "netns", namespace])?;
        run("ip", &["-n", namespace, "addr", "add", &link.block(2), "dev", far])?;
        run("ip", &["-n", namespace, "link", "set", "lo", "up"])?;
        run("ip", &["-n", namespace, "link", "set", far, "up"])?;
        run("ip", &["addr", "add", &link.block(1), "dev", near])?;
        run("ip", &["link", "set", near, "up"])?;
        Ok(link)
    }

    /// Where the collector is reached.
    #[must_use]
    pub fn collector(&self) -> Ipv4Addr {
        self.address(2)
    }

    /// The file that names the collector's namespace, for `nsenter`.
    #[must_use]
    pub fn namespace(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.namespace)
    }

    /// Loses so many of a hundred packets, each way; 100 is a cut.
    ///
    /// # Errors
    /// When `nft` refuses.
    pub fn lose(&self, percent: u32) -> anyhow::Result<()> {
        let far = &self.far;
        // A comparison that always holds is refused.
        let which = if percent < 100 { format!("numgen random mod 100 < {percent}") } else { String::new() };
        let chain = |name: &str| {
            format!(
                "chain {name} {{ type filter hook {name} device \"{far}\" priority 0;\n\
                 meta protocol ip {which} drop\n}}\n"
            )
        };
        self.rules(&format!("{NO_RULES}\ntable netdev faults {{\n{}{}}}", chain("ingress"), chain("egress")))
    }

    /// Packets above this size are refused. Bytes.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn shrink(&self, mtu: u32) -> anyhow::Result<()> {
        let mtu = mtu.to_string();
        run("ip", &["-n", &self.namespace, "link", "set", &self.far, "mtu", &mtu])?;
        run("ip", &["link", "set", &self.near, "mtu", &mtu])
    }

    /// The agent's host gets another address, as when somebody carries it to another network.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn move_agent(&mut self) -> anyhow::Result<()> {
        run("ip", &["addr", "del", &self.block(self.own), "dev", &self.near])?;
        self.own = if self.own == 1 { 3 } else { 1 };
        run("ip", &["addr", "add", &self.block(self.own), "dev", &self.near])
    }

    /// A whole cable again.
    ///
    /// # Errors
    /// When `nft` or `ip` refuse.
    pub fn mend(&self) -> anyhow::Result<()> {
        self.rules(NO_RULES)?;
        self.shrink(MTU)
    }

    fn rules(&self, rules: &str) -> anyhow::Result<()> {
        run("nsenter", &[&format!("--net={}", self.namespace().display()), "nft", rules])
    }

    fn address(&self, last: u8) -> Ipv4Addr {
        let [a, b, c] = self.net;
        Ipv4Addr::new(a, b, c, last)
    }

    fn block(&self, last: u8) -> String {
        format!("{}/29", self.address(last))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Either may be gone already, or never have been made.
        for arguments in [["link", "del", &self.near], ["netns", "del", &self.namespace]] {
            let _ = Command::new("ip").args(arguments).stderr(Stdio::null()).status();
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("could not start {program}: install iproute2, nftables and util-linux"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {said}", arguments.join(" "));
    Ok(())
}
