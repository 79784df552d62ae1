//! ① Nobody hands out what they do not have.
//!
//! Invariant: if nothing is ungranted, every action that the wanted rules allow is allowed by the owned ones.

use super::{ANY, PolicyRule, has, path_matches};

/// The most parts that one role's rules may come to: verbs times groups times resources times names, summed. A role of
/// a hundred verbs, groups and resources each would take a million comparisons with every rule that its maker has.
const MAX_PARTS: usize = 10_000;

/// What of a role its maker does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ungranted {
    /// These parts, each of one verb on one thing.
    Parts(Vec<PolicyRule>),
    /// The role is too large to be compared: so many parts, of which at most 10,000 are looked at.
    TooLarge { parts: usize },
}

/// What `wanted` allows and `owned` does not, or nothing if whoever has `owned` may hand it out. Each part of one verb,
/// group, resource and name must be covered by one owned rule, as in Kubernetes.
#[must_use]
pub fn ungranted(owned: &[&PolicyRule], wanted: &[PolicyRule]) -> Option<Ungranted> {
    let parts = wanted.iter().map(count).fold(0_usize, usize::saturating_add);
    if parts > MAX_PARTS {
        return Some(Ungranted::TooLarge { parts });
    }
    let missing: Vec<PolicyRule> =
        wanted.iter().flat_map(split).filter(|part| !owned.iter().any(|rule| covers(rule, part))).collect();
    (!missing.is_empty()).then_some(Ungranted::Parts(missing))
}

fn count(rule: &PolicyRule) -> usize {
    let things = rule
        .api_groups
        .len()
        .saturating_mul(rule.resources.len())
        .saturating_mul(rule.resource_names.len().max(1))
        .saturating_add(rule.non_resource_urls.len());
    rule.verbs.len().saturating_mul(things)
}

/// The parts of a rule, each with one verb and one thing.
fn split(rule: &PolicyRule) -> Vec<PolicyRule> {
    let mut parts = Vec::new();
    for verb in &rule.verbs {
        let with_verb = || PolicyRule { verbs: vec![verb.clone()], ..PolicyRule::default() };
        for group in &rule.api_groups {
            for resource in &rule.resources {
                let part =
                    PolicyRule { api_groups: vec![group.clone()], resources: vec![resource.clone()], ..with_verb() };
                if rule.resource_names.is_empty() {
                    parts.push(part);
                    continue;
                }
                let named = |name: &String| PolicyRule { resource_names: vec![name.clone()], ..part.clone() };
                parts.extend(rule.resource_names.iter().map(named));
            }
        }
        let paths = rule.non_resource_urls.iter();
        parts.extend(paths.map(|path| PolicyRule { non_resource_urls: vec![path.clone()], ..with_verb() }));
    }
    parts
}

/// Whether one owned rule allows all that a part does.
fn covers(owned: &PolicyRule, part: &PolicyRule) -> bool {
    let names = owned.resource_names.is_empty()
        || (!part.resource_names.is_empty() && part.resource_names.iter().all(|n| owned.resource_names.contains(n)));
    part.verbs.iter().all(|verb| has(&owned.verbs, verb))
        && part.api_groups.iter().all(|group| has(&owned.api_groups, group))
        && part.resources.iter().all(|wanted| owned.resources.iter().any(|known| covers_resource(known, wanted)))
        && (part.resources.is_empty() || names)
        && part
            .non_resource_urls
            .iter()
            .all(|path| owned.non_resource_urls.iter().any(|known| path_matches(known, path)))
}

/// Whether a rule's resource means all that another's does.
fn covers_resource(known: &str, wanted: &str) -> bool {
    let subresources = known.strip_prefix("*/").zip(wanted.split_once('/'));
    known == ANY || known == wanted || subresources.is_some_and(|(known, (_, wanted))| known == wanted)
}
