use std::os::unix::fs::symlink;

use proptest::prelude::*;

use super::*;
use crate::source::{Snapshot, files::Files};

/// What is read of a text, with its faults as `line: field: message; remedy`.
fn read_text(text: impl AsRef<[u8]>) -> Result<Option<Keys>, Vec<String>> {
    let cut = |problem: Problem| problem.to_string().replacen("f:", "", 1);
    parse(Path::new("f"), text.as_ref()).map_err(|problems| problems.into_iter().map(cut).collect())
}

fn prefixes(texts: &[&str]) -> Option<Vec<IpNet>> {
    Some(texts.iter().map(|text| text.parse().unwrap()).collect())
}

#[test]
fn every_key_is_read_among_sections_of_others() {
    let text = "# A machine\n[Exec]\nBoot=yes\n\n[X-Netspawn]\nAddress=203.0.113.2\n\
                Address = 2001:db8:1::/64\nTenant=acme corp\nMac=02:00:00:00:00:05\nVlan=30\n\
                Interface=ve-web\n\
                AnyMac=yes\nSource=10.8.0.0/24\nSource=10.9.0.0/24\n[Network]\nVirtualEthernet=yes\nAddress=not ours\n";
    let keys = Keys {
        interface: Some("ve-web".to_owned()),
        addresses: prefixes(&["203.0.113.2/32", "2001:db8:1::/64"]),
        tenant: Some("acme corp".to_owned()),
        mac: Some([2, 0, 0, 0, 0, 5]),
        vlan: Some(30),
        any_mac: Some(true),
        sources: prefixes(&["10.8.0.0/24", "10.9.0.0/24"]),
    };
    assert_eq!(read_text(text), Ok(Some(keys)));
}

#[test]
fn file_without_the_section_declares_nothing_whatever_is_in_it() {
    for text in [
        "",
        "\n# nothing\n",
        "[Exec]\nBoot=yes\n",
        "Address=203.0.113.2\n",
        "[X-Other]\nAddress=bad\nBad\n",
        "[Exec\nAddress=bad\n",
        "[Exec]\n\u{0}\u{1}=\n=x\n",
        "; [X-Netspawn]\n# \\\n[Exec]\n",
    ] {
        assert_eq!(read_text(text), Ok(None), "{text:?}");
    }
    assert_eq!(read_text(b"[Exec]\nEnvironment=A=\xe9\n"), Ok(None));
}

#[test]
fn addresses_are_a_list_that_an_empty_one_empties() {
    for (text, expected) in [
        (
            "Address=203.0.113.2 2001:db8::2\t203.0.113.3",
            &["203.0.113.2/32", "2001:db8::2/128", "203.0.113.3/32"][..],
        ),
        (
            "Address=203.0.113.2\nAddress=203.0.113.3",
            &["203.0.113.2/32", "203.0.113.3/32"],
        ),
        (
            "Address=203.0.113.2\nAddress=\nAddress=203.0.113.3",
            &["203.0.113.3/32"],
        ),
        (
            "Address=203.0.113.2\nAddress=\nAddress=203.0.113.2",
            &["203.0.113.2/32"],
        ),
        (
            "Address=203.0.113.2 \\\n  203.0.113.3",
            &["203.0.113.2/32", "203.0.113.3/32"],
        ),
        (
            "Address=203.0.113.2\\\n203.0.113.3",
            &["203.0.113.2/32", "203.0.113.3/32"],
        ),
        (
            "Address=\\\n# one\n\\\n; two\n203.0.113.2\\\n\nTenant=a",
            &["203.0.113.2/32"],
        ),
        ("Address=203.0.113.2\\", &["203.0.113.2/32"]),
        (
            "[Exec]\nAddress=x\n[X-Netspawn]\nAddress=203.0.113.2",
            &["203.0.113.2/32"],
        ),
    ] {
        let keys = read_text(format!("[X-Netspawn]\n{text}")).unwrap().unwrap();
        assert_eq!(keys.addresses, prefixes(expected), "{text:?}");
    }
    let reset = read_text("[X-Netspawn]\nAddress=203.0.113.2\nAddress=\n")
        .unwrap()
        .unwrap();
    assert_eq!(reset, Keys::default());
}

#[test]
fn last_of_other_keys_counts() {
    let keys = read_text("[X-Netspawn]\nTenant=a\nVlan=1\n[X-Netspawn]\nTenant=b\n")
        .unwrap()
        .unwrap();
    assert_eq!((keys.tenant.as_deref(), keys.vlan), (Some("b"), Some(1)));
}

#[test]
fn line_ends_and_marks_of_other_systems_are_read() {
    for text in [
        "\u{feff}[X-Netspawn]\r\nTenant=a\r\n",
        "[X-Netspawn]\rTenant=a\r",
        "[X-Netspawn]\n\rTenant=a",
        " \t[X-Netspawn] \n\t Tenant \t=\t a \t\n",
    ] {
        let keys = read_text(text).unwrap().unwrap();
        assert_eq!(keys.tenant.as_deref(), Some("a"), "{text:?}");
    }
    for end in ["\n", "\r", "\r\n", "\n\r"] {
        let text = ["[X-Netspawn]", "", "Vlan=0", ""].join(end);
        assert!(
            read_text(&text).unwrap_err()[0].starts_with("3: Vlan: "),
            "{text:?}"
        );
    }
}

#[test]
fn two_backslashes_continue_nothing() {
    let keys = read_text("[X-Netspawn]\nTenant=a\\\\\nVlan=1\n")
        .unwrap()
        .unwrap();
    assert_eq!(
        (keys.tenant.as_deref(), keys.vlan),
        (Some("a\\\\"), Some(1))
    );
}

#[test]
fn every_fault_names_line_field_and_remedy() {
    const PREFIX: &str = "write an address such as 203.0.113.2 or a prefix such as 2001:db8:1::/64";
    for (text, expected) in [
        (
            "Address=203.0.113.2\nAdress=203.0.113.3",
            &["3: Adress: unknown key; did you mean `Address`?"][..],
        ),
        (
            "address=203.0.113.2",
            &["2: address: unknown key; did you mean `Address`?"],
        ),
        (
            "Colour=red",
            &[
                "2: Colour: unknown key; known are Address, Tenant, Mac, Vlan, Interface, \
              AnyMac, Source",
            ],
        ),
        (
            "Address=203.0.113.2 \\\n# comment\n  203.0.113 \\\n  203.0.113.2/32",
            &[
                "4: Address: \"203.0.113\" is neither an IPv4 nor an IPv6 address; {PREFIX}",
                "5: Address: 203.0.113.2/32 is given twice; remove one of them",
            ],
        ),
        (
            "Address=203.0.113.2/24",
            &[
                "2: Address: 203.0.113.2/24 has host bits set; write 203.0.113.0/24 for the whole \
               prefix, or 203.0.113.2/32 for the one address",
            ],
        ),
        (
            "Address=\"203.0.113.2\"",
            &[
                "2: Address: \"\\\"203.0.113.2\\\"\" is neither an IPv4 nor an IPv6 address; {PREFIX}",
            ],
        ),
        (
            "Vlan=4095\nVlan=x\nVlan=30",
            &[
                "2: Vlan: 4095 is not a VLAN id; write a number from 1 to 4094, or remove it for \
                 untagged",
                "3: Vlan: \"x\" is not a VLAN id; write a number from 1 to 4094, or remove it for \
                 untagged",
            ],
        ),
        (
            "Tenant=",
            &[
                "2: Tenant: an empty tenant is no tenant; name it, or remove the key: machines that \
               name none form one tenant",
            ],
        ),
        (
            "Mac=\\\n 01:00:5e:00:00:01",
            &[
                "3: Mac: 01:00:5e:00:00:01 is a multicast MAC address; write the address of the \
               machine's own interface (the first byte is even)",
            ],
        ),
        (
            "Interface=a b",
            &[
                "2: Interface: \"a b\" is not an interface name; write a name that `ip link` shows, \
               such as \"ve-web\"",
            ],
        ),
        (
            "Address 203.0.113.2\n=x",
            &[
                "2: \"Address 203.0.113.2\" is no assignment; write a key, `=` and a value, such as \
                 Address=203.0.113.2",
                "3: \"=x\" is no assignment; write a key, `=` and a value, such as \
                 Address=203.0.113.2",
            ],
        ),
        (
            "Tenant=a\n[Exec] # more",
            &[
                "3: \"[Exec] # more\" is no section, and systemd-nspawn refuses the file; write \
               [NAME] and nothing after it",
            ],
        ),
    ] {
        let expected: Vec<_> = expected
            .iter()
            .map(|line| line.replace("{PREFIX}", PREFIX))
            .collect();
        assert_eq!(
            read_text(format!("[X-Netspawn]\n{text}")),
            Err(expected),
            "{text:?}"
        );
    }
    assert_eq!(
        read_text(b"[X-Netspawn]\nTenant=a\nTenant=\xe9\n"),
        Err(vec![
            "3: is not UTF-8 text, and systemd-nspawn refuses the file; save the file as UTF-8"
                .to_owned()
        ])
    );
    assert!(read_text(b"[X-Netspawn]\nTenant=a\n[Exec]\n\xe9\n").is_err());
    assert!(read_text("[X-Netspawn]\nTenant=a\n[\u{1}]\n").is_err());
}

#[test]
fn section_that_is_nearly_ours_is_told() {
    for (name, line) in [
        (
            "[X-NetSpawn]",
            "1: [X-NetSpawn] is not looked at; did you mean [X-Netspawn]?",
        ),
        (
            "[Netspawn]",
            "1: [Netspawn] is not looked at; did you mean [X-Netspawn]?",
        ),
        (
            "[X-Netspan]",
            "1: [X-Netspan] is not looked at; did you mean [X-Netspawn]?",
        ),
        (
            "[X-Netspawn] # public",
            "1: \"[X-Netspawn] # public\" is no section, and systemd-nspawn refuses the file; write \
             [NAME] and nothing after it",
        ),
    ] {
        let read = read_text(format!("{name}\nAddress=203.0.113.2\n"));
        assert_eq!(read, Err(vec![line.to_owned()]));
    }
}

/// Folders in place of those below /etc and /run.
struct Folders {
    root: tempfile::TempDir,
    files: NspawnFiles,
}

impl Folders {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let [etc, run] = ["etc", "run"].map(|name| root.path().join(name));
        fs::create_dir(&etc).unwrap();
        fs::create_dir(&run).unwrap();
        Folders {
            root,
            files: NspawnFiles::at([etc, run]),
        }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    fn write(&self, path: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(path), text).unwrap();
    }

    fn address(&self, path: &str, address: &str) {
        self.write(path, format!("[X-Netspawn]\nAddress={address}\n"));
    }

    fn read(&self) -> Snapshot {
        let mut layers = Layers::default();
        self.files.read(&mut layers);
        layers.merge()
    }

    /// Problems without the folders' path.
    fn problems(&self, snapshot: &Snapshot) -> Vec<String> {
        let root = format!("{}/", self.root.path().display());
        let cut = |problem: &Problem| problem.to_string().replace(&root, "");
        snapshot.problems.iter().map(cut).collect()
    }
}

fn addresses(snapshot: &Snapshot, name: &str) -> Option<String> {
    let declaration = snapshot.declarations.get(name)?;
    Some(
        declaration
            .addresses
            .iter()
            .map(IpNet::to_string)
            .collect::<Vec<_>>()
            .join(" "),
    )
}

#[test]
fn first_file_found_is_the_machine_s() {
    let folders = Folders::new();
    for name in [
        "both", "empty", "masked", "wrong", "dangling", "lower", "folder",
    ] {
        folders.address(&format!("run/{name}.nspawn"), "203.0.113.9");
    }
    folders.address("etc/both.nspawn", "203.0.113.2");
    folders.write("etc/empty.nspawn", "");
    folders.write("etc/wrong.nspawn", "[X-Netspawn]\nAddress=no\n");
    symlink("/dev/null", folders.path("etc/masked.nspawn")).unwrap();
    symlink("nowhere", folders.path("etc/dangling.nspawn")).unwrap();
    fs::create_dir(folders.path("etc/folder.nspawn")).unwrap();
    fs::create_dir(folders.path("etc/lower.nspawn.d")).unwrap();
    folders.address("etc/lower.nspawn.d/1.nspawn", "203.0.113.3");
    folders.address("etc/.lower.nspawn", "203.0.113.3");
    folders.address("etc/lower.nspawn~", "203.0.113.3");

    let snapshot = folders.read();
    for (name, expected) in [
        ("both", Some("203.0.113.2/32")),
        ("empty", None),
        ("masked", None),
        ("wrong", None),
        ("dangling", Some("203.0.113.9/32")),
        ("lower", Some("203.0.113.9/32")),
        ("folder", None),
    ] {
        assert_eq!(addresses(&snapshot, name).as_deref(), expected, "{name}");
    }
    assert_eq!(
        snapshot.keeps("wrong"),
        Some((SourceKind::Nspawn, &*folders.path("etc/wrong.nspawn")))
    );
    assert_eq!(snapshot.unusable.len(), 1);
    assert_eq!(snapshot.problems.len(), 1);
    let both = &snapshot.declarations["both"];
    assert_eq!(
        (both.source, &both.path),
        (SourceKind::Nspawn, &folders.path("etc/both.nspawn"))
    );
}

#[test]
fn other_people_s_files_are_no_problem() {
    let folders = Folders::new();
    let large = vec![b'#'; (1 << 20) + 1];
    folders.write("etc/a b.nspawn", "[Exec]\nBoot=yes\n");
    folders.write("etc/c d.nspawn", &large);
    folders.write("etc/latin.nspawn", b"# \xe9\n[Exec]\nBoot=yes\n");
    folders.write("etc/notes.txt", "[X-Netspawn]\nbad\n");
    nix::unistd::mkfifo(
        &folders.path("etc/fifo.nspawn"),
        nix::sys::stat::Mode::S_IRUSR,
    )
    .unwrap();
    assert_eq!(folders.read(), Snapshot::default());

    folders.address("etc/a b.nspawn", "203.0.113.2");
    folders.write("etc/large.nspawn", &large);
    folders.write("etc/none.nspawn", "[X-Netspawn]\n");
    let snapshot = folders.read();
    assert_eq!(
        folders.problems(&snapshot),
        [
            "etc/a b.nspawn: \"a b\" is not a machine name: it has ' '; rename the file: use \
             letters, digits, `-`, `_` and `.`, 64 at most",
            "etc/large.nspawn: is larger than 1048576 bytes; declare shorter prefixes instead of \
             many addresses",
            "etc/none.nspawn: Address: is missing; write Address=203.0.113.2 in [X-Netspawn]",
        ]
    );
    assert!(snapshot.declarations.is_empty());
}

#[test]
fn folder_that_cannot_be_listed_hides_nothing_and_uncovers_nothing() {
    let mut folders = Folders::new();
    folders.address("run/web.nspawn", "203.0.113.9");
    folders.write("file", "");
    folders.files = NspawnFiles::at([folders.path("file"), folders.path("run")]);
    let snapshot = folders.read();
    assert!(snapshot.declarations.is_empty());
    assert_eq!(
        snapshot.keeps("web"),
        Some((SourceKind::Nspawn, &*folders.path("file")))
    );

    folders.files = NspawnFiles::at([folders.path("none"), folders.path("run")]);
    assert_eq!(
        addresses(&folders.read(), "web").as_deref(),
        Some("203.0.113.9/32")
    );
}

#[test]
fn machine_files_replace_key_by_key() {
    let folders = Folders::new();
    folders.write(
        "etc/web.nspawn",
        "[X-Netspawn]\nAddress=203.0.113.2\nTenant=acme\nVlan=30\n",
    );
    fs::create_dir_all(folders.path("config/machines")).unwrap();
    let read = |text: &str| {
        folders.write("config/machines/web.toml", text);
        let mut layers = Layers::default();
        folders.files.read(&mut layers);
        Files::new(&folders.path("config"), &folders.path("none")).read(&mut layers);
        layers.merge()
    };

    let snapshot = read("addresses = [\"203.0.113.3\"]\nvlan = 31\n");
    let web = &snapshot.declarations["web"];
    assert_eq!(web.source, SourceKind::Config);
    assert_eq!(web.path, folders.path("config/machines/web.toml"));
    assert_eq!(
        addresses(&snapshot, "web").as_deref(),
        Some("203.0.113.3/32")
    );
    assert_eq!((web.tenant.as_deref(), web.vlan), (Some("acme"), Some(31)));

    // Its addresses alone may come from the lower one.
    let snapshot = read("tenant = \"other\"\n");
    assert_eq!(
        addresses(&snapshot, "web").as_deref(),
        Some("203.0.113.2/32")
    );
    assert_eq!(
        snapshot.declarations["web"].tenant.as_deref(),
        Some("other")
    );

    // One bad layer costs the machine's news, and none of what it holds.
    folders.write("etc/web.nspawn", "[X-Netspawn]\nAddress=no\n");
    let snapshot = read("addresses = [\"203.0.113.3\"]\n");
    assert!(snapshot.keeps("web").is_some());
}

/// How a section is written down, beside what it says.
#[derive(Clone, Debug)]
struct Style {
    blank: &'static str,
    end: &'static str,
    between: &'static str,
    gap: &'static str,
}

fn style() -> impl Strategy<Value = Style> {
    (
        prop::sample::select(vec!["", " ", "\t", " \t "]),
        prop::sample::select(vec!["\n", "\r\n", "\r"]),
        prop::sample::select(vec![
            "",
            "\n",
            "# Address=no\n",
            "  ; [Exec]\n",
            "[Exec]\nBoot=yes\n[X-Netspawn]\n",
        ]),
        prop::sample::select(vec![
            " ",
            "\t",
            "\\\n",
            " \\\n  ",
            "\\\n# no\\\n\t",
            "\\\n;\n\\\n",
        ]),
    )
        .prop_map(|(blank, end, between, gap)| Style {
            blank,
            end,
            between,
            gap,
        })
}

/// Assignments of addresses, empty ones among them, each address once.
fn assignments() -> impl Strategy<Value = Vec<Vec<IpNet>>> {
    prop::collection::vec((0..4usize, any::<u32>()), 0..8).prop_map(|sizes| {
        let mut next = 0;
        let mut address = |seed: u32| {
            next += 1;
            let text = match seed % 3 {
                0 => format!("203.0.113.{next}/32"),
                1 => format!("2001:db8::{next:x}/128"),
                _ => format!("2001:db8:{next:x}::/64"),
            };
            text.parse().unwrap()
        };
        sizes
            .into_iter()
            .map(|(size, seed)| {
                (0..size)
                    .map(|n| address(seed.wrapping_add(n as u32)))
                    .collect()
            })
            .collect()
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        assignments in assignments(),
        tenant in prop::option::of("[a-z]{1,8}( [a-z]{1,8})?"),
        style in style(),
    ) {
        let Style { blank, end, between, gap } = style;
        let mut text = format!("{blank}[X-Netspawn]{blank}\n");
        let mut expected = Vec::new();
        for assignment in &assignments {
            if assignment.is_empty() {
                expected.clear();
            }
            expected.extend(assignment.iter().copied());
            let words: Vec<_> = assignment.iter().map(IpNet::to_string).collect();
            text += &format!("{blank}Address{blank}={blank}{}\n{between}", words.join(gap));
        }
        if let Some(tenant) = &tenant {
            text += &format!("Tenant={blank}{tenant}{blank}\n");
        }
        let keys = read_text(text.replace('\n', end)).unwrap().unwrap();
        prop_assert_eq!(keys, Keys {
            addresses: Some(expected).filter(|all| !all.is_empty()),
            tenant,
            ..Keys::default()
        });
    }

    #[test]
    fn anything_is_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = read_text(bytes);
    }

    #[test]
    fn anything_like_a_file_is_read_without_panic(
        text in r"(\[X-Netspawn\]|Address|Vlan|=|\\|\[|\]|#|\n|\r| |203\.0\.113\.2|/|\x00|é|\u{feff}){0,40}",
    ) {
        if let Err(lines) = read_text(&text) {
            let lines: Vec<usize> = lines.iter().map(|line| line.split(':').next().unwrap().parse().unwrap()).collect();
            prop_assert!(lines.is_sorted(), "{lines:?} in {text:?}");
        }
    }
}
