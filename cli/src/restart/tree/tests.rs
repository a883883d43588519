use super::*;

const SHELL: i32 = 10;

fn ids(pid: i32, ppid: i32, pgid: i32, sid: i32) -> Ids {
    Ids { pid, ppid, pgid, sid, last: 0 }
}

fn zombie(pid: i32, pgid: i32, sid: i32) -> Zombie {
    Zombie { pid, pgid, sid, status: 0x300 }
}

fn members<'a>(all: &[(Ids, &'a [Zombie])]) -> Vec<Member<'a>> {
    all.iter()
        .map(|&(ids, zombies)| Member { ids, zombies, subreaper: false, session_ended: false })
        .collect()
}

fn tree(all: &[(Ids, &[Zombie])]) -> Tree {
    Tree::new(&members(all), false, &BTreeSet::new()).unwrap()
}

impl Tree {
    fn node(&self, id: i32) -> &Node {
        self.nodes.iter().find(|node| node.id == id).unwrap()
    }

    fn named(&self, numbers: &[usize]) -> Vec<i32> {
        numbers.iter().map(|&number| self.nodes[number].id).collect()
    }
}

#[test]
fn a_process_alone_stays_with_the_restart() {
    let tree = tree(&[(ids(100, SHELL, 9, SHELL), &[])]);
    assert_eq!((tree.named(&tree.top), tree.nodes.len()), (vec![100], 1));
    assert_eq!((tree.nodes[0].session, tree.nodes[0].group), (None, None));
    assert!(!tree.nodes[0].leads_session && !tree.nodes[0].leads_group);
}

#[test]
fn a_job_of_a_shell_has_its_group_and_the_restarts_session() {
    let tree = tree(&[(ids(100, SHELL, 100, SHELL), &[]), (ids(101, 100, 100, SHELL), &[])]);
    assert_eq!(tree.named(&tree.node(100).after), [101]);
    for id in [100, 101] {
        assert_eq!((tree.node(id).session, tree.node(id).group), (None, Some(100)));
    }
    assert!(tree.node(100).leads_group && !tree.node(101).leads_group && !tree.node(100).leads_session);
}

#[test]
fn detached_all_of_the_outer_session_is_the_first_processes() {
    let all =
        [(ids(100, SHELL, 9, SHELL), &[][..]), (ids(101, 100, 9, SHELL), &[]), (ids(102, 1, 9, SHELL), &[])];
    let tree = Tree::new(&members(&all), true, &BTreeSet::new()).unwrap();
    assert!(tree.node(100).leads_session && tree.node(100).leads_group);
    for id in [100, 101, 102] {
        assert_eq!((tree.node(id).session, tree.node(id).group), (Some(100), Some(100)));
    }
    assert_eq!(tree.named(&tree.top), [100]);
    assert_eq!(tree.named(&tree.node(100).after), [101]);
    assert_eq!(tree.named(&tree.node(100).strays), [102]);
}

#[test]
fn children_of_the_older_session_are_made_before_it_is_left() {
    // 101 called setsid(2) between making 102 and 103.
    let tree = tree(&[
        (ids(100, SHELL, 100, SHELL), &[]),
        (ids(101, 100, 101, 101), &[]),
        (ids(102, 101, 100, SHELL), &[]),
        (ids(103, 101, 101, 101), &[]),
    ]);
    let leader = tree.node(101);
    assert!(leader.leads_session);
    assert_eq!((tree.named(&leader.before), tree.named(&leader.after)), (vec![102], vec![103]));
}

#[test]
fn the_session_that_a_grandchild_needs_is_the_one_its_parents_are_born_into() {
    // 100 leads one; 101 and its child 102 left it for their own after 103 was made.
    let tree = tree(&[
        (ids(100, SHELL, 100, 100), &[]),
        (ids(101, 100, 101, 101), &[]),
        (ids(102, 101, 102, 102), &[]),
        (ids(103, 102, 100, 100), &[]),
    ]);
    assert_eq!(tree.named(&tree.node(100).after), [101]);
    assert_eq!(tree.named(&tree.node(101).before), [102]);
    assert_eq!(tree.named(&tree.node(102).before), [103]);
}

#[test]
fn an_orphan_is_made_by_a_child_of_its_sessions_leader() {
    let tree = tree(&[(ids(100, SHELL, 100, 100), &[]), (ids(105, 1, 100, 100), &[])]);
    assert_eq!(tree.named(&tree.top), [100]);
    assert_eq!(tree.named(&tree.node(100).strays), [105]);
    assert_eq!(tree.nodes[tree.root].id, 100);
}

#[test]
fn a_session_without_its_leader_has_a_ghost_that_makes_its_members() {
    // A daemon that forked twice: its session's leader has ended.
    let tree = tree(&[(ids(100, SHELL, 100, SHELL), &[]), (ids(105, 1, 104, 104), &[])]);
    let ghost = tree.node(104);
    assert_eq!(ghost.kind, Kind::Ghost);
    assert!(ghost.leads_session && ghost.leads_group);
    assert_eq!(tree.named(&ghost.after), [105]);
    assert_eq!(tree.named(&tree.top), [100, 104]);
}

#[test]
fn a_group_without_its_leader_has_a_ghost_in_the_same_session() {
    let tree = tree(&[
        (ids(100, SHELL, 100, 100), &[]),
        (ids(101, 100, 90, 100), &[]),
        (ids(102, 100, 90, 100), &[]),
    ]);
    let ghost = tree.node(90);
    assert_eq!(
        (ghost.kind, ghost.session, ghost.leads_session, ghost.leads_group),
        (Kind::Ghost, Some(100), false, true)
    );
    assert_eq!(tree.named(&tree.node(100).after), [90, 101, 102]);
}

#[test]
fn a_zombie_is_its_parents_child_and_may_lead() {
    let dead = [zombie(101, 101, 100)];
    let tree = tree(&[(ids(100, SHELL, 100, 100), &dead), (ids(102, 100, 101, 100), &[])]);
    assert_eq!(tree.node(101).kind, Kind::Zombie(0x300));
    assert!(tree.node(101).leads_group);
    assert_eq!(tree.named(&tree.node(100).after), [102, 101]);
    assert_eq!(tree.nodes.len(), 3, "no ghost");
}

#[test]
fn who_left_the_group_that_has_its_id_leads_it_first() {
    let tree = tree(&[
        (ids(100, SHELL, 100, 100), &[]),
        (ids(101, 100, 100, 100), &[]),
        (ids(102, 100, 101, 100), &[]),
    ]);
    assert!(tree.node(101).moves() && !tree.node(100).moves() && !tree.node(102).moves());
}

#[test]
fn a_subreaper_is_given_what_it_adopted() {
    let all = [
        (ids(100, SHELL, 100, SHELL), &[][..]),
        (ids(101, 100, 101, 101), &[]),
        (ids(102, 100, 101, 101), &[]),
    ];
    let mut members = members(&all);
    assert!(Tree::new(&members, false, &BTreeSet::new()).is_err(), "nobody could have adopted it");
    members[0].subreaper = true;
    let tree = Tree::new(&members, false, &BTreeSet::new()).unwrap();
    assert_eq!(tree.named(&tree.node(101).strays), [102]);
    assert_eq!(tree.node(102).parent, Some(0));
}

#[test]
fn a_ghost_is_the_child_of_the_subreaper_that_adopted_whom_it_makes() {
    let dead = [zombie(103, 101, 101)];
    let mut members = members(&[
        (ids(100, SHELL, 100, SHELL), &dead),
        (ids(102, 100, 102, 101), &[]),
        (ids(104, 1, 101, 101), &[]),
    ]);
    members[0].subreaper = true;
    assert!(Tree::new(&members, false, &BTreeSet::new()).is_err(), "one was adopted by somebody else");
    members.pop();
    let tree = Tree::new(&members, false, &BTreeSet::new()).unwrap();
    assert_eq!(tree.named(&tree.node(100).after), [101]);
    assert_eq!(tree.named(&tree.node(101).after), [102, 103]);
    assert_eq!((tree.node(101).parent, tree.named(&tree.top)), (Some(0), vec![100]));
}

#[test]
fn a_supervisor_with_a_session_of_its_own_is_made_by_its_parent() {
    let mut members = members(&[
        (ids(99, SHELL, 99, SHELL), &[]),
        (ids(100, 99, 100, 100), &[]),
        (ids(102, 100, 101, 101), &[]),
    ]);
    members[1].subreaper = true;
    let tree = Tree::new(&members, false, &BTreeSet::new()).unwrap();
    assert_eq!(tree.named(&tree.node(99).after), [100]);
    assert_eq!(tree.named(&tree.node(100).after), [101]);
    assert_eq!(tree.named(&tree.node(101).after), [102]);
}

#[test]
fn a_supervisor_that_leads_a_session_is_given_those_of_sessions_below_it() {
    let dead = [zombie(101, 101, 101), zombie(102, 101, 101)];
    let mut members = members(&[
        (ids(100, SHELL, 100, 100), &dead),
        (ids(103, 100, 103, 103), &[]),
        (ids(104, 100, 103, 103), &[]),
    ]);
    members[0].subreaper = true;
    let tree = Tree::new(&members, false, &BTreeSet::new()).unwrap();
    assert_eq!((tree.named(&tree.top), tree.named(&tree.node(100).after)), (vec![100], vec![103, 101]));
    assert_eq!(
        (tree.named(&tree.node(101).after), tree.named(&tree.node(103).strays)),
        (vec![102], vec![104])
    );
}

#[test]
fn ids_of_another_namespace_are_outside() {
    let tree = tree(&[(ids(100, 0, 0, 0), &[]), (ids(101, 100, 0, 0), &[])]);
    assert_eq!((tree.node(101).session, tree.node(101).group), (None, None));
    assert_eq!(tree.nodes.len(), 2);
}

#[test]
fn the_restart_stands_in_for_an_ancestor_of_the_first() {
    let tree = tree(&[(ids(101, 100, 9, SHELL), &[]), (ids(100, 1, 9, SHELL), &[])]);
    assert_eq!(tree.nodes[tree.root].id, 100);
}

#[test]
fn what_contradicts_itself_is_refused() {
    for all in [
        vec![(ids(100, SHELL, 9, SHELL), &[][..]), (ids(100, SHELL, 9, SHELL), &[])],
        vec![(ids(100, 101, 9, SHELL), &[]), (ids(101, 100, 9, SHELL), &[])],
        vec![(ids(-1, SHELL, 9, SHELL), &[])],
        vec![
            (ids(100, SHELL, 100, 100), &[]),
            (ids(101, 100, 102, 100), &[]),
            (ids(102, 100, 102, 102), &[]),
        ],
        vec![(ids(100, SHELL, 9, 100), &[])],
    ] {
        assert!(Tree::new(&members(&all), false, &BTreeSet::new()).is_err(), "{all:?}");
    }
}

#[test]
fn a_session_whose_leader_has_ended_is_not_the_restarts() {
    let daemon = Member { ids: ids(100, 1, 98, 99), zombies: &[], subreaper: false, session_ended: true };
    let tree = Tree::new(&[daemon], false, &BTreeSet::new()).unwrap();
    assert_eq!((tree.node(100).session, tree.node(100).group), (Some(99), Some(98)));
    assert_eq!((tree.node(99).kind, tree.named(&tree.top)), (Kind::Ghost, vec![99]));
}

#[test]
fn a_session_may_be_joined_to_the_restarts_though_a_process_led_it() {
    let all = [(ids(100, SHELL, 100, 100), &[][..]), (ids(101, 100, 101, 100), &[])];
    let tree = Tree::new(&members(&all), false, &BTreeSet::from([100])).unwrap();
    for id in [100, 101] {
        assert_eq!((tree.node(id).session, tree.node(id).group), (None, Some(id)));
        assert!(tree.node(id).leads_group && !tree.node(id).leads_session);
    }
}
