//! The vDSO: code and data of the kernel's that programs use in their own memory, by addresses that they keep.
//!
//! Where this kernel's is the image's, it is moved to where it was. Where it is another one:
//!
//! - this kernel's lies where nothing of the image is;
//! - the image's is memory like any other from now on. Its tables tell whoever looks what they always told; but each function
//!   begins with a jump to the function of that name in this kernel's, or makes the system call that it stands for;
//! - where its data was there are zeros. A thread that was interrupted in a function by a handler of the program's, and
//!   goes on there when the handler returns, finds a clock without a counter (`VDSO_CLOCKMODE_NONE` is zero) whose sequence
//!   has changed, and asks the kernel. Only a coarse clock would tell it a time of zero.
//!
//! A further checkpoint knows nothing of this: the vDSO that it has is this kernel's, at its new place. On a third kernel one
//! jump leads to the next.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    ops::Range,
    os::fd::{FromRawFd, OwnedFd},
};

use anyhow::Context as _;
use object::{
    Endianness,
    read::{Object, ObjectSymbol, SymbolKind, elf::ElfFile64},
};
use stasis_protocol::{
    PAGE_SIZE,
    coordinator::Refusal,
    image::{Backing, Machine, Mapping, ProcessImage, checksum},
    plan::{self, KernelMapping},
    store::MEMORY,
};

use super::{
    computation::Saved,
    descriptors::Places,
    disabled, layout, objects,
    plan::{Plan, call},
    refusal,
};
use crate::arch::vdso::{jump, stand_in};

const PAGE: u64 = PAGE_SIZE as u64;

/// The mapping that has the code.
const CODE: &str = "[vdso]";

/// Images are hostile input; the kernels' have two pages or three.
const LARGEST: u64 = 256 << 10;

/// A function that keeps state in the program's memory, in a way that is the kernel build's own: never one for another.
const WITH_STATE: &str = "getrandom";

/// This kernel's vDSO: every process has the same.
pub struct Vdso {
    /// Names and addresses in this process, as in /proc/self/maps.
    mappings: Vec<(&'static str, Range<u64>)>,
    code: Vec<u8>,
}

impl Vdso {
    /// # Errors
    /// /proc/self/maps cannot be read.
    pub fn of_this_kernel() -> io::Result<Self> {
        let maps = fs::read("/proc/self/maps")?;
        let mut vdso = Self { mappings: Vec::new(), code: Vec::new() };
        for line in String::from_utf8_lossy(&maps).lines() {
            let Some(name) = ["[vvar]", "[vvar_vclock]", CODE]
                .into_iter()
                .find(|name| line.ends_with(&format!(" {name}")))
            else {
                continue;
            };
            let Some((start, end)) = line.split_whitespace().next().and_then(|range| range.split_once('-'))
            else {
                continue;
            };
            let address = |word| u64::from_str_radix(word, 16).map_err(io::Error::other);
            let range = address(start)?..address(end)?;
            if name == CODE {
                let len = (range.end - range.start) as usize;
                // SAFETY: the vDSO is mapped readable for the life of the process.
                vdso.code = unsafe { std::slice::from_raw_parts(range.start as *const u8, len) }.to_vec();
            }
            vdso.mappings.push((name, range));
        }
        Ok(vdso)
    }

    fn is(&self, machine: &Machine) -> bool {
        let own = (self.code.len() as u64, checksum(&self.code));
        own == (machine.vdso_len, machine.vdso_sum) && !disabled("same-vdso")
    }

    /// Looks whether a process can go on with it.
    pub fn check(&self, saved: &Saved, refusals: &mut Vec<Refusal>) {
        let image = &saved.image;
        if self.is(&image.machine) {
            return;
        }
        let kernel = &image.machine.kernel;
        for thread in image.threads.iter().filter(|thread| thread.in_vdso) {
            refusals.push(refusal(
                format!("pid {}, thread {} ({})", image.ids.pid, thread.tid, thread.name),
                format!("it stands in the vDSO of kernel {kernel}, and this kernel has another"),
                "restart from another checkpoint, or on a machine with that kernel",
            ));
        }
        if let Err(error) = self.replacement(saved, 0) {
            refusals.push(refusal(
                format!("pid {}, the vDSO of kernel {kernel}", image.ids.pid),
                format!("this kernel's cannot take its place: {error:#}"),
                "restart on a machine with that kernel",
            ));
        }
    }

    /// How a process gets on with it. `taken`: where nothing may lie beside the image.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn arrange(&self, saved: &Saved, taken: Option<Range<u64>>) -> anyhow::Result<Arrangement> {
        let image = &saved.image;
        if self.is(&image.machine) {
            let kernel = image.mappings.iter().filter_map(|mapping| match &mapping.backing {
                Backing::Kernel(name) => {
                    Some(kernel_mapping(name, mapping.start, mapping.end - mapping.start))
                }
                _ => None,
            });
            return Ok(Arrangement { kernel: kernel.collect(), replacement: None });
        }
        // The code finds its data by the distance.
        let (Some((_, first)), Some((_, last))) = (self.mappings.first(), self.mappings.last()) else {
            return Ok(Arrangement { kernel: Vec::new(), replacement: Some(self.replacement(saved, 0)?) });
        };
        let at = place(image, taken, last.end - first.start).context("the image leaves no addresses free")?;
        let moved = |range: &Range<u64>| at + (range.start - first.start);
        let kernel = self
            .mappings
            .iter()
            .map(|(name, range)| kernel_mapping(name, moved(range), range.end - range.start));
        let base = self.mappings.iter().find(|(name, _)| *name == CODE).map_or(0, |(_, range)| moved(range));
        Ok(Arrangement { kernel: kernel.collect(), replacement: Some(self.replacement(saved, base)?) })
    }

    /// The image's code where this kernel's lies at `base`; empty where the image has none.
    fn replacement(&self, saved: &Saved, base: u64) -> anyhow::Result<Vec<u8>> {
        let Some(mapping) = saved.image.mappings.iter().find(|mapping| is_code(mapping)) else {
            return Ok(Vec::new());
        };
        let mut code = saved_code(saved, mapping)?;
        redirect(&mut code, &self.code, base)?;
        Ok(code)
    }
}

/// What becomes of the image's vDSO in a process.
pub struct Arrangement {
    /// Where this kernel's is to lie.
    pub kernel: Vec<KernelMapping>,
    /// The code that lies where the image's was, if that is not this kernel's.
    replacement: Option<Vec<u8>>,
}

impl Arrangement {
    /// Writes into the plan what lies at one of the image's kernel mappings, if that is not the kernel's any more.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn plan(&self, mapping: &Mapping, places: &mut Places, plan: &mut Plan) -> anyhow::Result<()> {
        let Some(replacement) = &self.replacement else { return Ok(()) };
        let (start, len) = (mapping.start, mapping.end - mapping.start);
        let mut protection = libc::PROT_READ;
        if is_code(mapping) {
            protection |= libc::PROT_WRITE;
            // SAFETY: a new descriptor, which nobody else has.
            let memory = unsafe { libc::memfd_create(c"stasis-vdso".as_ptr(), libc::MFD_CLOEXEC) };
            if memory < 0 {
                return Err(io::Error::last_os_error()).context("no memory for the vDSO");
            }
            // SAFETY: as above.
            let mut file = File::from(unsafe { OwnedFd::from_raw_fd(memory) });
            file.write_all(replacement).context("no memory for the vDSO")?;
            let fd = places.place(file.into())?;
            plan.calls.push(call(libc::SYS_pread64, &[fd as u64, start, len, 0]));
            plan.calls.push(call(libc::SYS_mprotect, &[start, len, mapping.protection.into()]));
        }
        plan.mappings.push(plan::Mapping {
            start,
            len,
            protection: protection as u32,
            flags: (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u32,
            fd: -1,
            _pad: 0,
            offset: 0,
        });
        // For who reads /proc/PID/maps; and it is not merged with what the program maps beside it.
        let name = Some("stasis: vDSO of another kernel".to_owned());
        layout::advise(&Mapping { backing: Backing::Anonymous, flags: 0, name, ..mapping.clone() }, plan);
        Ok(())
    }
}

fn kernel_mapping(name: &str, start: u64, len: u64) -> KernelMapping {
    let mut bytes = [0; 16];
    let used = name.len().min(bytes.len());
    bytes[..used].copy_from_slice(&name.as_bytes()[..used]);
    KernelMapping { name: bytes, start, len }
}

/// Whether the mapping is the vDSO's code, whose pages are in the checkpoint.
pub fn is_code(mapping: &Mapping) -> bool {
    matches!(&mapping.backing, Backing::Kernel(name) if name == CODE)
}

/// The code as the checkpoint has it.
fn saved_code(saved: &Saved, mapping: &Mapping) -> anyhow::Result<Vec<u8>> {
    let len = mapping.end - mapping.start;
    anyhow::ensure!(len <= LARGEST, "it has {len} bytes");
    let mut code = vec![0; len as usize];
    let (first, end) = (mapping.start / PAGE, mapping.end / PAGE);
    for (extent, hash) in saved.pages.of(MEMORY) {
        let from = first.max(extent.first_page);
        let to = end.min(extent.first_page + extent.pages);
        if from < to {
            let pages = from - extent.first_page..to - extent.first_page;
            objects::read(saved, extent, hash, pages, |at, bytes| {
                let at = (at - mapping.start) as usize;
                code[at..at + bytes.len()].copy_from_slice(bytes);
                Ok(())
            })?;
        }
    }
    Ok(code)
}

/// A function by its offset.
#[derive(Default)]
struct Function {
    /// Without `__vdso_`.
    names: Vec<String>,
    len: u64,
}

fn functions(code: &[u8]) -> anyhow::Result<BTreeMap<u64, Function>> {
    let mut functions: BTreeMap<u64, Function> = BTreeMap::new();
    if code.is_empty() {
        return Ok(functions);
    }
    let file = ElfFile64::<Endianness>::parse(code)?;
    for symbol in file.dynamic_symbols().filter(|symbol| symbol.is_definition()) {
        if symbol.kind() == SymbolKind::Text {
            let name = symbol.name()?;
            let function = functions.entry(symbol.address()).or_default();
            function.names.push(name.strip_prefix("__vdso_").unwrap_or(name).to_owned());
            function.len = symbol.size();
        }
    }
    Ok(functions)
}

/// Makes each function in `code` one of `here`, which lies at `base`, or a system call.
fn redirect(code: &mut [u8], here: &[u8], base: u64) -> anyhow::Result<()> {
    let here = functions(here)?;
    for (at, function) in functions(code)? {
        let same = |(_, other): &(&u64, &Function)| {
            other.names.iter().any(|name| name != WITH_STATE && function.names.contains(name))
        };
        let entry = match here.iter().find(same) {
            Some((to, _)) => Some(jump(base + to)),
            None => function.names.iter().find_map(|name| stand_in(name)),
        };
        let name = || function.names.join(", ");
        let entry = entry.with_context(|| format!("it has no function {}", name()))?;
        let room = at.checked_add(function.len).and_then(|end| code.get_mut(at as usize..end as usize));
        let room = room.and_then(|room| room.get_mut(..entry.len()));
        room.with_context(|| format!("{} has only {} bytes", name(), function.len))?.copy_from_slice(&entry);
    }
    Ok(())
}

/// Where it lies: at random, as the kernel chooses, since its addresses help who has found a hole in the program.
fn place(image: &ProcessImage, taken: Option<Range<u64>>, len: u64) -> Option<u64> {
    const TRIES: usize = 64;
    /// What grows is not to meet it soon.
    const DISTANCE: u64 = 64 << 20;
    let occupied: Vec<Range<u64>> = layout::occupied(image).chain(taken).collect();
    let pages = (layout::AREA_TO - layout::AREA_FROM - len) / PAGE;
    for _ in 0..TRIES {
        let mut random = [0; 8];
        // SAFETY: getrandom(2) writes to these bytes.
        if unsafe { libc::getrandom(random.as_mut_ptr().cast(), random.len(), 0) } != random.len() as isize {
            break;
        }
        let at = layout::AREA_FROM + u64::from_ne_bytes(random) % pages * PAGE;
        let around = at - DISTANCE..at + len + DISTANCE;
        if occupied.iter().all(|range| range.end <= around.start || around.end <= range.start) {
            return Some(at);
        }
    }
    layout::free_area(occupied, len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_function_of_this_kernels_vdso_can_be_replaced_by_another_or_by_a_system_call() {
        let here = Vdso::of_this_kernel().unwrap();
        assert!(!functions(&here.code).unwrap().is_empty());
        let base = 0x1234_5678_9000;
        for other in [&here.code[..], &[]] {
            let mut code = here.code.clone();
            redirect(&mut code, other, base).unwrap();
            for (at, function) in functions(&code).unwrap() {
                let by_call = other.is_empty() || function.names.iter().any(|name| name == WITH_STATE);
                let expected = if by_call { stand_in(&function.names[0]).unwrap() } else { jump(base + at) };
                assert_eq!(code[at as usize..][..expected.len()], expected, "{:?}", function.names);
            }
        }
    }

    #[test]
    fn bytes_that_are_no_vdso_are_refused() {
        let here = Vdso::of_this_kernel().unwrap();
        for len in (0..here.code.len()).step_by(7) {
            let mut code = here.code.clone();
            code[len..].fill(0xff);
            // An error or none, but no panic.
            let _ = redirect(&mut code, &here.code, 0);
        }
        assert!(redirect(&mut [0xff; 8192], &here.code, 0).is_err());
    }
}
