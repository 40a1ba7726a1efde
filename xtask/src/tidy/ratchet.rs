//! The list of known offenders, `xtask/tidy.txt`. It may only shrink: an entry holds exactly the
//! size that is there, and must go when its offender has gone.
//!
//! A line is `RULE PATH[::ITEM] SIZE`; for rules without a size, SIZE is the number of findings.

use std::collections::BTreeMap;

use super::Finding;
use super::tree::Tree;

const LIST: &str = "xtask/tidy.txt";
const RULE: &str = "ratchet";

type Named = (&'static str, Finding);

/// Takes out what the list allows and adds what is wrong with the list.
pub fn apply(tree: &Tree, findings: Vec<Named>) -> Vec<Named> {
    let mut groups = BTreeMap::<String, Vec<Named>>::new();
    for (rule, finding) in findings {
        groups.entry(key(rule, &finding)).or_default().push((rule, finding));
    }
    let mut problems = Vec::new();
    let list = tree.get(LIST).map_or("", |file| &file.text);
    for (i, line) in list.lines().enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut problem = |message: String| {
            problems.push((RULE, Finding::at(LIST, i + 1, message)));
        };
        let entry = line.rsplit_once(' ').and_then(|(key, n)| Some((key, n.parse().ok()?)));
        let Some((key, allowed)) = entry else {
            problem("is not `RULE PATH[::ITEM] SIZE`; write it so".to_owned());
            continue;
        };
        match groups.get(key).map(|group| size(group)) {
            None => problem(format!("`{key}` offends no more: remove this line")),
            Some(found) if found < allowed => {
                problem(format!("`{key}` has shrunk: write {found} instead of {allowed}"));
            }
            Some(found) if found == allowed => drop(groups.remove(key)),
            Some(_) => {} // it has grown: its findings stay
        }
    }
    problems.extend(groups.into_values().flatten());
    problems
}

fn key(rule: &str, finding: &Finding) -> String {
    let item = if finding.item.is_empty() { "" } else { "::" };
    format!("{rule} {}{item}{}", finding.path, finding.item)
}

fn size(group: &[Named]) -> usize {
    let is_measured = group.iter().any(|(_, finding)| finding.size > 1);
    if !is_measured {
        return group.len();
    }
    group.iter().map(|(_, finding)| finding.size).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(list: &str, expected: &[&str]) {
        let finding = Finding::at("a.rs", 3, "too long").measured("f", 80);
        let (one, two) = (Finding::at("b.rs", 1, "bad"), Finding::at("b.rs", 2, "bad"));
        let findings = vec![("function-length", finding), ("mark", one), ("mark", two)];
        let left = apply(&Tree::of(&[(LIST, list)]), findings);
        let left = left.iter().map(|(rule, f)| format!("{rule} {} {}", f.path, f.line));
        assert_eq!(left.collect::<Vec<_>>(), expected, "{list}");
    }

    #[test]
    fn the_list_allows_exactly_what_it_names() {
        let (long, marks) = ("function-length a.rs 3", ["mark b.rs 1", "mark b.rs 2"]);
        let here = "ratchet xtask/tidy.txt 1";
        check("", &[long, marks[0], marks[1]]);
        check("# known\n\nfunction-length a.rs::f 80\n", &marks);
        check("function-length a.rs::f 79\n", &[long, marks[0], marks[1]]);
        check("function-length a.rs::f 81\n", &[here, long, marks[0], marks[1]]);
        check("function-length a.rs::g 80\n", &[here, long, marks[0], marks[1]]);
        check("mark b.rs 2\nfunction-length a.rs::f 80\n", &[]);
        check("mark b.rs two\n", &[here, long, marks[0], marks[1]]);
    }
}
