//! `cargo xtask fuzz-live`: frames with all that a sender can say beside their bytes, at
//! length, against an attached data plane.

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::{
    build::{self, target_dir},
    ci::cargo,
    run::{show, step},
    setup,
};

/// Arguments of `cargo xtask fuzz-live`.
#[derive(clap::Args)]
pub struct Args {
    /// Frames of each combination
    #[arg(long, default_value_t = 1_000_000)]
    frames: u64,
    /// What the frames are made from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Who sends; both otherwise
    #[arg(long)]
    from: Option<From>,
    /// The sender's link; both otherwise
    #[arg(long)]
    kind: Option<Link>,
    /// How the uplink is attached; both otherwise
    #[arg(long)]
    mode: Option<Mode>,
    /// The uplink's kind where a machine sends; that of its own link otherwise
    #[arg(long)]
    uplink: Option<Link>,
    /// In a guest with the newest kernel of this series, `6.1`, in emulation: some 50 frames/s
    #[arg(long, value_name = "SERIES", conflicts_with_all = ["index", "uplink"])]
    kernel: Option<String>,
    /// Sends the frame with this number alone
    #[arg(long, conflicts_with = "frames")]
    index: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum From {
    /// A machine
    Port,
    /// A station on the network
    Network,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Link {
    /// Packet sockets with `PACKET_VNET_HDR`
    Veth,
    /// A tap with `IFF_VNET_HDR`, and headers of tunnels where the kernel has them
    Tap,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Mode {
    Tc,
    Xdp,
}

fn name(value: impl ValueEnum) -> String {
    value
        .to_possible_value()
        .map_or(String::new(), |value| value.get_name().to_owned())
}

/// Sets the machine up, then fuzzes one combination after the other.
pub fn run(args: Args) -> Result<()> {
    setup::ready()?;
    build::programs(false)?;
    let chosen = combinations(&args);
    if args.index.is_some() && chosen.len() != 1 {
        bail!("--index is of one combination: give --from, --kind and --mode too");
    }
    if let Some(series) = args.kernel {
        step(format_args!("fuzzing in a guest with kernel {series}"));
        return show(
            crate::test::suite("kernels")
                .args(["--", "--exact", "--nocapture"])
                .arg("fuzz::no_kernel_completes_a_sum_into_another_source")
                .env("NETSPAWN_FUZZ_KERNEL", series)
                .env("NETSPAWN_FUZZ_TESTS", chosen.join(" "))
                .env("NETSPAWN_FUZZ_FRAMES", args.frames.to_string())
                .env("NETSPAWN_FUZZ_SEED", args.seed.to_string()),
        );
    }
    let mut failed = Vec::new();
    for combination in chosen {
        step(format_args!("fuzzing {combination}"));
        let mut command = cargo();
        command
            .args(["test", "--package", "netspawn-tests"])
            .args(["--test", "fuzz_live", "--", "--exact", "--nocapture"])
            .arg(&combination)
            .env("NETSPAWN_XDP", target_dir().join("debug/netspawn-xdp"))
            .env("NETSPAWN_FUZZ_FRAMES", args.frames.to_string())
            .env("NETSPAWN_FUZZ_SEED", args.seed.to_string());
        if let Some(index) = args.index {
            command.env("NETSPAWN_FUZZ_INDEX", index.to_string());
        }
        if let Some(uplink) = args.uplink {
            command.env("NETSPAWN_FUZZ_UPLINK", name(uplink));
        }
        if let Err(error) = show(&mut command) {
            eprintln!("error: {error:#}");
            failed.push(combination);
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

/// The names of the suite's tests that are wanted.
fn combinations(args: &Args) -> Vec<String> {
    let mut all = Vec::new();
    for from in From::value_variants() {
        for kind in Link::value_variants() {
            for mode in Mode::value_variants() {
                if args.from.is_none_or(|wanted| wanted == *from)
                    && args.kind.is_none_or(|wanted| wanted == *kind)
                    && args.mode.is_none_or(|wanted| wanted == *mode)
                {
                    all.push(format!("{}_{}_{}", name(*from), name(*kind), name(*mode)));
                }
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_choose_among_the_tests() {
        let mut args = Args {
            frames: 1,
            seed: 1,
            from: None,
            kind: None,
            mode: None,
            uplink: None,
            kernel: None,
            index: None,
        };
        assert_eq!(combinations(&args).len(), 8);
        args.from = Some(From::Port);
        args.mode = Some(Mode::Xdp);
        assert_eq!(combinations(&args), ["port_veth_xdp", "port_tap_xdp"]);
    }
}
