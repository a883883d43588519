//! Where the running kernel keeps what the programs read, from its BTF (/sys/kernel/btf/vmlinux; the format is in the
//! kernel's Documentation/bpf/btf.rst).

use std::collections::HashMap;

use anyhow::{Context as _, bail, ensure};
use stasis_events::{NONE, Offsets};

const MAGIC: u16 = 0xeb9f;

const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;

/// Structures and unions by name, and by number for those that have none.
pub struct Types<'a> {
    strings: &'a [u8],
    by_number: HashMap<u32, Members>,
    by_name: HashMap<&'a str, u32>,
}

struct Members {
    size: u32,
    members: Vec<Member>,
}

struct Member {
    name: u32,
    number: u32,
    bit: u32,
}

/// Reads little-endian words one after the other.
struct Words<'a>(&'a [u8]);

impl Words<'_> {
    fn next(&mut self) -> anyhow::Result<u32> {
        let (word, rest) = self.0.split_first_chunk::<4>().context("the BTF ends within a type")?;
        self.0 = rest;
        Ok(u32::from_le_bytes(*word))
    }

    fn skip(&mut self, words: usize) -> anyhow::Result<()> {
        self.0 = self.0.get(words * 4..).context("the BTF ends within a type")?;
        Ok(())
    }
}

impl<'a> Types<'a> {
    /// # Errors
    /// When the bytes are not BTF as we know it.
    pub fn parse(bytes: &'a [u8]) -> anyhow::Result<Self> {
        let mut header = Words(bytes);
        let magic = header.next()?;
        ensure!(magic as u16 == MAGIC, "this is no BTF (it begins with {magic:#x})");
        let length = header.next()? as usize;
        let (types, types_len) = (header.next()? as usize, header.next()? as usize);
        let (strings, strings_len) = (header.next()? as usize, header.next()? as usize);
        let section = |at: usize, len: usize| {
            length.checked_add(at).and_then(|start| bytes.get(start..start.checked_add(len)?))
        };
        let types = section(types, types_len).context("the BTF's types lie outside of it")?;
        let strings = section(strings, strings_len).context("the BTF's strings lie outside of it")?;
        let mut found = Self { strings, by_number: HashMap::new(), by_name: HashMap::new() };
        found.read(types)?;
        Ok(found)
    }

    fn read(&mut self, types: &[u8]) -> anyhow::Result<()> {
        let mut words = Words(types);
        let mut number = 0;
        while !words.0.is_empty() {
            number += 1;
            let (name, info, size) = (words.next()?, words.next()?, words.next()?);
            let (kind, count, has_bits) = (info >> 24 & 0x1f, info as usize & 0xffff, info >> 31 != 0);
            match kind {
                KIND_STRUCT | KIND_UNION => {
                    let mut members = Vec::with_capacity(count);
                    for _ in 0..count {
                        let (name, number, offset) = (words.next()?, words.next()?, words.next()?);
                        // With kind_flag the upper byte is the width of a bit field.
                        let bit = if has_bits { offset & 0x00ff_ffff } else { offset };
                        members.push(Member { name, number, bit });
                    }
                    self.by_number.insert(number, Members { size, members });
                    let strings = self.strings;
                    if let Some(name) = string(strings, name).filter(|name| !name.is_empty()) {
                        self.by_name.entry(name).or_insert(number);
                    }
                }
                // INT, VAR and DECL_TAG have one word more, ARRAY three.
                1 | 14 | 17 => words.skip(1)?,
                3 => words.skip(3)?,
                // ENUM and FUNC_PROTO: two words for each; DATASEC and ENUM64: three.
                6 | 13 => words.skip(count * 2)?,
                15 | 19 => words.skip(count * 3)?,
                2 | 7..=12 | 16 | 18 => {}
                other => bail!("the BTF has types of kind {other}, which this version does not know"),
            }
        }
        Ok(())
    }

    /// The bit at which a field lies; those of unnamed structures within count as the outer one's.
    fn bit(&self, of: &str, field: &str) -> Option<u32> {
        self.bit_in(*self.by_name.get(of)?, field, 0)
    }

    fn bit_in(&self, number: u32, field: &str, depth: u32) -> Option<u32> {
        // The kernel nests three of them at most; a loop would not end.
        const DEEPEST: u32 = 8;
        let members = &self.by_number.get(&number).filter(|_| depth < DEEPEST)?.members;
        members.iter().find_map(|member| match string(self.strings, member.name)? {
            "" => Some(member.bit + self.bit_in(member.number, field, depth + 1)?),
            name if name == field => Some(member.bit),
            _ => None,
        })
    }

    fn byte(&self, of: &str, field: &str) -> Option<u32> {
        Some(self.bit(of, field)? / 8)
    }

    fn size(&self, of: &str) -> Option<u32> {
        Some(self.by_number.get(self.by_name.get(of)?)?.size)
    }
}

fn string(strings: &[u8], at: u32) -> Option<&str> {
    let rest = strings.get(at as usize..)?;
    let end = rest.iter().position(|&byte| byte == 0)?;
    std::str::from_utf8(&rest[..end]).ok()
}

/// What of the kernel's structures could not be found.
pub struct Found {
    pub offsets: Offsets,
    /// Fields without which sockets cannot be looked at.
    pub sockets_missing: Vec<String>,
}

/// # Errors
/// Names the field without which tasks cannot be followed.
pub fn offsets(btf: &[u8]) -> anyhow::Result<Found> {
    let types = Types::parse(btf)?;
    let field = |of: &str, field: &str| {
        types.byte(of, field).with_context(|| format!("this kernel's BTF has no {of}.{field}"))
    };
    let secure = types.bit("linux_binprm", "secureexec");
    let mut offsets = Offsets {
        task_pid: field("task_struct", "pid")?,
        task_tgid: field("task_struct", "tgid")?,
        task_comm: field("task_struct", "comm")?,
        // Its name before Linux 5.5.
        task_start_boottime: field("task_struct", "start_boottime")
            .or_else(|_| field("task_struct", "real_start_time"))?,
        task_real_parent: field("task_struct", "real_parent")?,
        task_cred: field("task_struct", "cred")?,
        task_signal: field("task_struct", "signal")?,
        task_exit_code: field("task_struct", "exit_code")?,
        task_thread_pid: field("task_struct", "thread_pid")?,
        cred_euid: field("cred", "euid")?,
        signal_live: field("signal_struct", "live")?,
        signal_group_exit_code: field("signal_struct", "group_exit_code")?,
        pid_level: field("pid", "level")?,
        pid_numbers: field("pid", "numbers")?,
        upid_size: types.size("upid").context("this kernel's BTF has no upid")?,
        bprm_filename: field("linux_binprm", "filename")?,
        bprm_secureexec: secure.map_or(NONE, |bit| bit / 8),
        bprm_secureexec_mask: secure.map_or(0, |bit| 1 << (bit % 8)),
        ..Offsets::nowhere()
    };
    let mut sockets_missing = Vec::new();
    let mut socket = |of: &str, field: &str| {
        types.byte(of, field).unwrap_or_else(|| {
            sockets_missing.push(format!("{of}.{field}"));
            NONE
        })
    };
    offsets.sock_family = socket("sock_common", "skc_family");
    offsets.sock_state = socket("sock_common", "skc_state");
    offsets.sock_num = socket("sock_common", "skc_num");
    offsets.sock_dport = socket("sock_common", "skc_dport");
    offsets.sock_daddr = socket("sock_common", "skc_daddr");
    offsets.sock_rcv_saddr = socket("sock_common", "skc_rcv_saddr");
    offsets.sock_net = socket("sock_common", "skc_net");
    offsets.net_inum = socket("net", "ns").saturating_add(socket("ns_common", "inum"));
    offsets.sock_type = socket("sock", "sk_type");
    offsets.sock_socket = socket("sock", "sk_socket");
    offsets.socket_sk = socket("socket", "sk");
    offsets.unix_peer = socket("unix_sock", "peer");
    offsets.socket_inode = socket("socket_alloc", "vfs_inode").saturating_add(socket("inode", "i_ino"));
    // A kernel without IPv6 has none of these, and no such sockets.
    offsets.sock_v6_daddr = types.byte("sock_common", "skc_v6_daddr").unwrap_or(NONE);
    offsets.sock_v6_rcv_saddr = types.byte("sock_common", "skc_v6_rcv_saddr").unwrap_or(NONE);
    Ok(Found { offsets, sockets_missing })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel() -> Vec<u8> {
        std::fs::read("/sys/kernel/btf/vmlinux").expect("a kernel with BTF")
    }

    #[test]
    fn the_running_kernel_tells_all_that_the_programs_read() {
        let found = offsets(&kernel()).unwrap();
        assert!(found.sockets_missing.is_empty(), "{:?}", found.sockets_missing);
        assert_ne!(found.offsets.task_pid, found.offsets.task_tgid);
        assert_eq!(found.offsets.task_tgid, found.offsets.task_pid + 4, "they have always been neighbours");
    }

    #[test]
    fn fields_of_unnamed_structures_are_found_at_their_place_in_the_outer_one() {
        let bytes = kernel();
        let types = Types::parse(&bytes).unwrap();
        // include/net/sock.h: skc_addrpair (both addresses) begins the structure.
        assert_eq!(types.byte("sock_common", "skc_daddr"), Some(0));
        assert_eq!(types.byte("sock_common", "skc_rcv_saddr"), Some(4));
    }

    #[test]
    fn whatever_bytes_come_nothing_panics() {
        let mut bytes = kernel();
        bytes.truncate(200_000);
        assert!(offsets(&bytes).is_err());
        for at in 0..200 {
            let mut broken = bytes.clone();
            broken[at] = !broken[at];
            assert!(offsets(&broken).is_err());
        }
        assert!(offsets(&[]).is_err());
    }
}
