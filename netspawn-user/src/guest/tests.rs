use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use nix::{sys::stat::Mode, unistd::mkfifo};

use super::*;

fn prefixes(texts: &[&str]) -> Vec<IpNet> {
    texts
        .iter()
        .map(|text| crate::fields::prefix(text).unwrap())
        .collect()
}

fn guest(addresses: &[IpNet]) -> Guest<'_> {
    Guest {
        name: "web",
        addresses,
        others: &[],
        end: End::Veth("host0".to_owned()),
        mtu: Some(1500),
    }
}

/// The lines without comments.
fn plain(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.fold(String::new(), |all, line| all + line + "\n")
}

#[test]
fn file_has_addresses_and_gateways() {
    let addresses = prefixes(&["203.0.113.2", "2001:db8::2"]);
    let text = guest(&addresses).network_file();
    assert_eq!(
        plain(&text).trim_start(),
        "[Match]\nKind=veth\nName=host0\n\n\
         [Network]\nDHCP=no\nLinkLocalAddressing=ipv6\n\
         IPv6DuplicateAddressDetection=0\nIPv6AcceptRA=no\nLLDP=no\nEmitLLDP=no\n\n\
         [Address]\nAddress=203.0.113.2/32\n\n\
         [Address]\nAddress=2001:db8::2/128\n\n\
         [Route]\nGateway=169.254.1.1\nGatewayOnLink=yes\n\n\
         [Route]\nGateway=fe80::1\n"
    );
}

#[test]
fn family_without_an_address_has_no_gateway() {
    let v4 = prefixes(&["203.0.113.2"]);
    assert!(!guest(&v4).network_file().contains("fe80::1"));
    let v6 = prefixes(&["2001:db8:1::/64"]);
    assert!(!guest(&v6).network_file().contains("169.254.1.1"));
    assert!(
        guest(&v6)
            .network_file()
            .contains("LinkLocalAddressing=ipv6")
    );
}

#[test]
fn prefix_gives_its_first_usable_address() {
    for (addresses, others, expected) in [
        (&["2001:db8:1::/64"][..], &[][..], &["2001:db8:1::1"][..]),
        (&["203.0.113.8/29"], &[], &["203.0.113.9"]),
        (&["203.0.113.8/31"], &[], &["203.0.113.8"]),
        (&["2001:db8::8/127"], &[], &["2001:db8::8"]),
        (&["203.0.113.8/30"], &["203.0.113.9"], &["203.0.113.10"]),
        (&["203.0.113.8/30"], &["203.0.113.0/24"], &["203.0.113.9"]),
        (
            &["203.0.113.8/30"],
            &["203.0.113.8/31", "203.0.113.10/31"],
            &[],
        ),
        (&["2001:db8:1::/64"], &["2001:db8:1::/112"], &[]),
        (
            &["2001:db8:1::/64", "2001:db8:1::5", "203.0.113.2"],
            &[],
            &["2001:db8:1::5", "203.0.113.2"],
        ),
    ] {
        let (addresses, others) = (prefixes(addresses), prefixes(others));
        let guest = Guest {
            others: &others,
            ..guest(&addresses)
        };
        let own: Vec<_> = guest.own().iter().map(IpAddr::to_string).collect();
        assert_eq!(own, expected, "{addresses:?} {others:?}");
    }
}

#[test]
fn rest_of_a_prefix_has_a_route_that_ends() {
    let addresses = prefixes(&["2001:db8:1::/64"]);
    let text = guest(&addresses).network_file();
    assert!(text.contains("[Route]\nDestination=2001:db8:1::/64\nType=unreachable\n"));
    assert!(text.contains("Address=2001:db8:1::1/128\n"));
}

#[test]
fn first_of_several_ipv4_addresses_is_the_source() {
    let addresses = prefixes(&["203.0.113.3", "2001:db8::2", "203.0.113.2"]);
    assert!(
        guest(&addresses)
            .network_file()
            .contains("GatewayOnLink=yes\nPreferredSource=203.0.113.3\n")
    );
}

#[test]
fn end_of_the_link_is_matched() {
    let addresses = prefixes(&["203.0.113.2"]);
    for (end, expected) in [
        (
            End::Veth("eth0".to_owned()),
            "[Match]\nKind=veth\nName=eth0\n",
        ),
        (
            End::Card([2, 0, 0, 0, 0, 5]),
            "[Match]\nMACAddress=02:00:00:00:00:05\n",
        ),
        (End::AnyCard, "[Match]\nType=ether\nKind=!*\n"),
    ] {
        let guest = Guest {
            end,
            ..guest(&addresses)
        };
        let text = plain(&guest.network_file());
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn mtu_is_named_where_the_default_is_too_large() {
    let addresses = prefixes(&["203.0.113.2"]);
    for (mtu, expected) in [
        (None, false),
        (Some(9000), false),
        (Some(1500), false),
        (Some(1400), true),
    ] {
        let guest = Guest {
            mtu,
            ..guest(&addresses)
        };
        let text = guest.network_file();
        assert_eq!(
            text.contains("[Link]\nMTUBytes=1400\n"),
            expected,
            "{mtu:?}"
        );
        assert_eq!(guest.commands()[0].ends_with(" mtu 1400"), expected);
    }
}

#[test]
fn commands_do_the_same() {
    let addresses = prefixes(&["203.0.113.2", "203.0.113.3", "2001:db8:1::/64"]);
    assert_eq!(
        guest(&addresses).commands(),
        [
            "ip link set host0 up",
            "ip address add 203.0.113.2/32 dev host0",
            "ip address add 203.0.113.3/32 dev host0",
            "ip address add 2001:db8:1::1/128 dev host0 nodad",
            "ip route add unreachable 2001:db8:1::/64",
            "ip route add default via 169.254.1.1 dev host0 onlink src 203.0.113.2",
            "ip route add default via fe80::1 dev host0",
        ]
    );
}

#[test]
fn digest_tells_every_change() {
    let addresses = prefixes(&["203.0.113.2"]);
    let text = guest(&addresses).network_file();
    assert!(is_unchanged(&text));
    assert!(!is_unchanged(""));
    assert!(!is_unchanged("[Match]\nName=host0\n"));
    assert!(!is_unchanged(&format!("{text}\n")));
    assert!(!is_unchanged(&format!("# mine\n{text}")));
    assert!(!is_unchanged(&text.replace(".2/32", ".3/32")));
    assert!(!is_unchanged(&text.replace("DHCP=no\n", "")));
}

/// A root folder with what systemd-networkd needs.
struct Root(tempfile::TempDir);

impl Root {
    fn new() -> Self {
        let root = Root(tempfile::tempdir().unwrap());
        for folder in ["etc/systemd/network", "usr/lib/systemd"] {
            fs::create_dir_all(root.path(folder)).unwrap();
        }
        fs::write(root.path("usr/lib/systemd/systemd-networkd"), "").unwrap();
        root
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn file(&self) -> PathBuf {
        self.path(FILE.trim_start_matches('/'))
    }

    /// Whether something was written, or why not.
    fn install(&self, text: &str) -> Result<bool, String> {
        let image = Image::open(self.0.path()).unwrap();
        let shown = format!("{}/", self.0.path().display());
        match image.install(text) {
            Ok((path, changed)) => {
                assert_eq!(path, self.file());
                Ok(changed)
            }
            Err(error) => Err(format!("{error:#}").replace(&shown, "")),
        }
    }

    /// Names in the folder of the file.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("etc/systemd/network")).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

fn text(address: &str) -> String {
    guest(&prefixes(&[address])).network_file()
}

#[test]
fn file_is_installed_replaced_and_left_as_it_is() {
    let root = Root::new();
    let (one, two) = (text("203.0.113.2"), text("203.0.113.3"));
    assert_eq!(root.install(&one), Ok(true));
    assert_eq!(fs::read_to_string(root.file()).unwrap(), one);
    assert_eq!(
        root.file().metadata().unwrap().permissions().mode() & 0o7777,
        0o644
    );
    let before = root.file().metadata().unwrap().ino();
    assert_eq!(root.install(&one), Ok(false));
    assert_eq!(root.file().metadata().unwrap().ino(), before);
    assert_eq!(root.install(&two), Ok(true));
    assert_eq!(fs::read_to_string(root.file()).unwrap(), two);
    assert_eq!(root.names(), ["10-netspawn.network"]);
}

#[test]
fn file_of_a_person_is_left_alone() {
    let root = Root::new();
    let text = text("203.0.113.2");
    for theirs in [
        "[Match]\nName=host0\n".to_owned(),
        text.replace("LLDP=no", "LLDP=yes"),
        String::new(),
    ] {
        fs::write(root.file(), &theirs).unwrap();
        assert_eq!(
            root.install(&text).unwrap_err(),
            "etc/systemd/network/10-netspawn.network was written or changed by somebody, so it is \
             left alone; move it away, or change it by hand (without --install, what would be \
             written is printed)"
        );
        assert_eq!(fs::read_to_string(root.file()).unwrap(), theirs);
        assert_eq!(root.names(), ["10-netspawn.network"]);
    }
}

#[test]
fn what_is_no_file_is_left_alone() {
    let root = Root::new();
    let outside = root.path("outside");
    fs::write(&outside, "x").unwrap();
    let text = text("203.0.113.2");
    let refused = |what: &str| {
        assert_eq!(
            root.install(&text).unwrap_err(),
            format!(
                "etc/systemd/network/10-netspawn.network is {what}, so it is left alone; move it \
                 away"
            )
        );
    };
    symlink(&outside, root.file()).unwrap();
    refused("a symbolic link");
    assert_eq!(fs::read(&outside).unwrap(), b"x");
    fs::remove_file(root.file()).unwrap();
    mkfifo(&root.file(), Mode::S_IRWXU).unwrap();
    refused("a FIFO");
    fs::remove_file(root.file()).unwrap();
    fs::create_dir(root.file()).unwrap();
    refused("a folder");
}

#[test]
fn links_never_lead_out_of_the_image() {
    let text = text("203.0.113.2");
    let elsewhere = tempfile::tempdir().unwrap();
    for (path, target) in [
        ("etc/systemd/network", elsewhere.path().to_owned()),
        (
            "etc/systemd/network",
            PathBuf::from("../../../../../../../../../..")
                .join(elsewhere.path().strip_prefix("/").unwrap()),
        ),
        ("etc/systemd", elsewhere.path().to_owned()),
        ("etc", elsewhere.path().to_owned()),
        (
            "etc/systemd/network",
            PathBuf::from("/proc/self/root").join(elsewhere.path().strip_prefix("/").unwrap()),
        ),
    ] {
        let root = Root::new();
        fs::remove_dir_all(root.path(path)).unwrap();
        symlink(&target, root.path(path)).unwrap();
        root.install(&text).unwrap_err();
        assert_eq!(
            fs::read_dir(elsewhere.path()).unwrap().count(),
            0,
            "{path} {target:?}"
        );

        // The same path inside the image is where the machine would look.
        let inside = root.path(
            target
                .strip_prefix("/")
                .unwrap_or(Path::new("none"))
                .to_str()
                .unwrap(),
        );
        if target.is_absolute() {
            fs::create_dir_all(&inside).unwrap();
            assert_eq!(root.install(&text), Ok(true), "{path} {target:?}");
            assert_eq!(
                fs::read_dir(elsewhere.path()).unwrap().count(),
                0,
                "{path} {target:?}"
            );
        }
    }
}

#[test]
fn missing_folders_are_made() {
    let root = Root::new();
    fs::remove_dir_all(root.path("etc")).unwrap();
    assert_eq!(root.install(&text("203.0.113.2")), Ok(true));
    let mode = root
        .path("etc/systemd")
        .metadata()
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o755);
}

#[test]
fn what_is_no_image_is_refused() {
    let empty = tempfile::tempdir().unwrap();
    let refused = |path: &Path| format!("{:#}", Image::open(path).unwrap_err());
    let shown = empty.path().display().to_string();
    assert_eq!(
        refused(empty.path()),
        format!("{shown} has neither etc nor usr; name the machine's root folder")
    );
    assert!(refused(Path::new("/")).starts_with("/ is the host's own root folder"));
    assert!(refused(&empty.path().join("none")).contains("No such file"));
    assert!(refused(Path::new("/dev/null")).contains("Not a directory"));
}

#[test]
fn networkd_is_looked_for_in_the_image() {
    let root = Root::new();
    let state = || Image::open(root.0.path()).unwrap().networkd();
    assert_eq!(state(), Networkd::Disabled);
    let wants = root.path("etc/systemd/system/multi-user.target.wants");
    fs::create_dir_all(&wants).unwrap();
    // As `systemctl enable` makes it: the target is the machine's.
    symlink(
        "/lib/systemd/system/systemd-networkd.service",
        wants.join("systemd-networkd.service"),
    )
    .unwrap();
    assert_eq!(state(), Networkd::Enabled);
    fs::remove_file(root.path("usr/lib/systemd/systemd-networkd")).unwrap();
    assert_eq!(state(), Networkd::Missing);
}
