"""Write the sample corpus, data/sample/{train,valid,test}.{de,en}: made-up sentence pairs.

The German-English pairs are drawn from the grammar in sample_grammar.py. Each German sentence has
exactly one English translation, and no sentence of either language occurs twice in the three files.
The same seed gives the same bytes with every Python version from 3.11 on.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import sample_grammar as g
from sample_grammar import (
    CITIES,
    FREQUENCIES,
    NOUN,
    NUMBERS,
    PLACES,
    PLAIN_VERBS,
    PRONOUNS,
    TIMES,
    VERBS,
    Clause,
    NounPhrase,
    Pair,
    Verb,
    english_main,
    english_question,
    german_last,
    german_main,
    joined,
    noun_phrase,
    nouns_of,
    prepositional,
    relative_pronoun,
)

SIZES = {"train": 20_000, "valid": 1_000, "test": 1_000}
DEFAULT_OUT = Path(__file__).resolve().parents[2] / "data" / "sample"
DEFAULT_SEED = 7
SHORTEST, LONGEST = 4, 20  # words per sentence
T = TypeVar("T")

NO_PHRASE = NounPhrase(("", "", ""), "", "")
QUESTIONED = NounPhrase(("wer", "wen", "wem"), "who", "who", gender="q")
CHAIRS = {
    "auf": ("on", "Tisch Stuhl Bett Sofa Regal Teppich"),
    "in": ("in", "Schrank Kiste Korb Tasche Koffer"),
    "unter": ("under", "Tisch Bett Stuhl Sofa"),
    "neben": ("next to", "Lampe Computer Klavier Fenster Schrank"),
    "hinter": ("behind", "Sofa Schrank Tür Klavier"),
}
DRIVE = """Dorf Stadt Museum Hotel Theater Bäckerei Fabrik Schloss Bahnhof Flughafen Hafen Markt
    Strand See Fluss Schule Wald"""
HIKE = "Dorf Schloss Turm Wald Strand See Fluss Stadt Brücke Hafen"
STAY = "Haus Zimmer Hotel Krankenhaus Garten Dorf Stadt Schloss Küche Büro"
LIVE = "Haus Hotel Dorf Stadt Schloss"
COOK = "Küche Restaurant Hotel Garten"
REST = "Küche Hotel Garten Haus Zimmer Schloss Restaurant Büro Krankenhaus"
INSIDE = "Küche Hotel Haus Zimmer Schloss Restaurant Büro Krankenhaus"
OUTLOOK = "Turm Brücke Fabrik Bäckerei"
PLACED = {
    "kochen": COOK,
    "frühstücken": REST,
    "fernsehen": "Hotel Haus Zimmer Küche Krankenhaus",
    "einkaufen": "Dorf Stadt Markt Bäckerei Flughafen",
    "schlafen": REST,
    "aufwachen": REST,
    "füttern": "Garten Park Hafen Dorf See Fluss Strand",
    "spielen": "Garten Park Haus Zimmer Strand Wald Dorf",
    "fangen": "Garten Park Wald See Fluss Strand",
    "abholen": "Bahnhof Flughafen Hafen Schule Krankenhaus Hotel",
}
TRADES = """Lehrer Ärztin Bäcker Köchin Richterin Sängerin Malerin Student Polizist Bauer Gärtner
    Schneiderin Anwalt Matrose Tänzerin Kellnerin Dichter Reporterin Fahrer Nachbar Kollege Freund
    Gast"""
JUDGEMENTS = g.pairs(
    "schön,nice schade,a_pity gut,good seltsam,strange klar,clear möglich,possible"
)
AIMS = """kaufen suchen holen treffen fragen begrüßen malen zeichnen fotografieren reparieren
    abholen helfen danken gratulieren zuhören arbeiten sprechen spielen"""
TRIP_AIMS = """besuchen treffen fotografieren malen zeichnen anschauen helfen gratulieren arbeiten
    sprechen verkaufen kaufen abholen"""
MISHAPS = """stehlen verlieren finden verstecken retten weglaufen abreisen bewundern erkennen
    vermissen hören sehen verstehen"""
HELPFUL = """aufräumen putzen kochen reparieren vorbereiten backen waschen einkaufen öffnen
    schließen abholen"""
FREED = "schlafen arbeiten frühstücken fernsehen tanzen essen lesen trinken malen spielen sprechen"
ARRIVALS = "ankommen aufwachen aufstehen zurückkommen"
# Maps each state to the activities for which it is a likely reason.
HUNGER = {
    "hungrig": "essen kochen backen schneiden schälen bestellen",
    "durstig": "trinken",
    "müde": "schlafen einschlafen",
    "traurig": "weinen",
    "glücklich": "singen tanzen lächeln lachen",
}
DUTIES = """helfen reparieren abholen arbeiten einkaufen besuchen füttern putzen aufräumen kochen
    waschen schreiben anrufen"""
COSTLY = "kaufen bestellen mieten reisen fliegen ziehen einkaufen"
WHY = ["glücklich", "zufrieden", "nervös", "Zeit", "Urlaub", "gute Laune", "allein"]
WHY_NOT = [
    "müde",
    "krank",
    "wütend",
    "nervös",
    "traurig",
    "keine Zeit",
    "kein Geld",
    "Angst",
    "allein",
]
DESPITE = [
    "müde",
    "krank",
    "hungrig",
    "durstig",
    "nervös",
    "traurig",
    "wütend",
    "keine Zeit",
    "kein Geld",
    "Angst",
    "allein",
]
PROVIDED = ["gesund", "fertig", "Zeit", "Geld", "Urlaub", "gute Laune", "zufrieden", "glücklich"]
STATES = [*g.STATES, "Zeit", "keine Zeit", "Angst", "Urlaub", "kein Geld", "Geld"]
AGES = {
    "Großvater": (61, 89),
    "Großmutter": (61, 89),
    "Vater": (35, 69),
    "Mutter": (35, 69),
    "Onkel": (31, 69),
    "Tante": (31, 69),
    "Bruder": (13, 45),
    "Schwester": (13, 45),
    "Sohn": (13, 29),
    "Tochter": (13, 29),
}
POSSESSED = ("mein", "dein", "sein", "ihr", "unser", "eu")
PERSONAL = {"me", "you", "him", "her", "us", "them"}


class Dice:
    """Random choices that are the same in all versions of Python.

    They use only Random.random(), because Python guarantees that its numbers never change.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def chance(self, probability: float) -> bool:
        """Return True with the given probability."""
        return self._random() < probability

    def pick(self, items: Sequence[T]) -> T:
        """Return one of the items."""
        return items[int(self._random() * len(items))]

    def weighted(self, options: Sequence[tuple[float, T]]) -> T:
        """Draw one of the (weight, item) options by weight, and return its item."""
        point = self._random() * sum(weight for weight, _ in options)
        for weight, item in options:
            point -= weight
            if point < 0:
                return item
        return options[-1][1]

    def among(self, **weights: float) -> str:
        """Draw one of the words by weight, and return it."""
        return self.weighted([(weight, word) for word, weight in weights.items()])

    def number(self, low: int, high: int) -> int:
        """Return an integer from low to high, both included."""
        return low + int(self._random() * (high - low + 1))


class Speaker(Dice):
    """Draws random noun phrases, clauses and sentences from the grammar."""

    # Noun phrases

    def adjective(self, noun: g.Noun, probability: float) -> g.Adjective | None:
        """With this probability, return an adjective that fits the noun, and otherwise None."""
        if not self.chance(probability):
            return None
        fitting = [a for a in g.ADJECTIVES if noun.group in a.groups or noun.singular in a.groups]
        return self.pick(fitting) if fitting else None

    def name(self) -> NounPhrase:
        """Return a first name."""
        woman = self.chance(0.5)
        name = self.pick(g.WOMEN if woman else g.MEN)
        return NounPhrase((name, name, name), name, name, gender="f" if woman else "m")

    def two_people(self) -> NounPhrase:
        """Return two names, or a name and a person, joined by `und`."""
        one = self.name()
        other = self.name() if self.chance(0.6) else self.person("der")
        if other.en == one.en:
            return self.two_people()
        cases = [f"{one.de(case)} und {other.de(case)}" for case in g.CASES]
        en = f"{one.en} and {other.en}"
        return NounPhrase((cases[0], cases[1], cases[2]), en, en, plural=True, gender="m")

    def possessive(self, owner: NounPhrase | None) -> tuple[str, str]:
        """Return a possessive pronoun in German and English.

        With an owner, it usually refers to the owner, as in `Anna ... ihr` and `Anna ... her`.
        """
        if owner and owner.person == 3 and owner.gender in "mfp" and self.chance(0.7):
            if owner.plural:
                return "ihr", "their"
            return ("sein", "his") if owner.gender == "m" else ("ihr", "her")
        if owner and owner.person < 3 and self.chance(0.7):
            word = [["mein", "dein"], ["unser", "euer"]][owner.plural][owner.person - 1]
        else:
            word = self.among(mein=4, dein=2, unser=2, euer=1)
        return word, g.EIN_WORDS[word]

    def kin(self, owner: NounPhrase | None) -> NounPhrase:
        """Return a relative with a possessive pronoun, such as `my uncle`."""
        noun = self.pick([noun for noun in nouns_of("kin") if not owner or noun.en not in owner.en])
        plural = noun.en in (
            "brother",
            "sister",
            "son",
            "daughter",
            "uncle",
            "aunt",
        ) and self.chance(0.25)
        if owner and owner.de("nom").lower().startswith(POSSESSED):
            owner = None
        word, english = self.possessive(owner)
        return noun_phrase(noun, word, plural, self.adjective(noun, 0.2), english)

    def person(self, word: str = "") -> NounPhrase:
        """Return a person or a child with an article."""
        noun = self.pick(nouns_of("person" if self.chance(0.85) else "child"))
        word = word or self.among(der=8, ein=1, dies=1)
        plural = word != "ein" and self.chance(0.25)
        return noun_phrase(noun, word, plural, self.adjective(noun, 0.4))

    def subject(self) -> NounPhrase:
        """Return any human subject."""
        kind = self.among(name=26, two=7, person=30, kin=14, pronoun=23)
        if kind == "pronoun":
            return self.pick(PRONOUNS)
        if kind == "two":
            return self.two_people()
        if kind == "kin":
            return self.kin(None)
        return self.name() if kind == "name" else self.person()

    def anaphoric_subject(self) -> NounPhrase:
        """Return a subject for which both languages use a pronoun of the same gender."""
        subject = self.subject()
        while anaphor(subject) is NO_PHRASE:
            subject = self.subject()
        return subject

    def other_subject(self, subject: NounPhrase) -> NounPhrase:
        """Return a subject that differs from the given one and is not a third person pronoun."""
        other = self.subject()
        while (
            other.en == subject.en
            or (other.pronoun and other.person == 3)
            or other.row == subject.row == 0
        ):
            other = self.subject()
        return other

    def thing(self, kind: str, owner: NounPhrase, indefinite: bool = False) -> NounPhrase:
        """Return a noun phrase for something that is not human."""
        noun = self.pick(nouns_of(kind))
        place = noun.group in ("place", "nature")
        adjective = self.adjective(noun, 0.3 if place else 0.45)
        plural = not noun.mass and not place and self.chance(0.3)
        word = "ein" if indefinite else self.thing_word(noun, plural)
        english = ""
        if word == "possessive":
            word, english = self.possessive(owner)
        if word == "number":
            bulky = noun.group in ("furniture", "vehicle", "instrument", "transit")
            number = self.pick(NUMBERS[:3] if bulky else NUMBERS)
            return noun_phrase(noun, number.de, True, adjective, number.en)
        if word == "ein" and (plural or noun.mass):
            return noun_phrase(noun, "", plural, adjective)
        return noun_phrase(noun, word, plural, adjective, english)

    def thing_word(self, noun: g.Noun, plural: bool) -> str:
        """Return a determiner, "possessive" or "number" for a thing."""
        if noun.group in ("place", "nature"):
            return self.among(der=5, dies=1, ein=1)
        if noun.mass:
            return self.among(der=5, ein=5, dies=1)
        if noun.group == "door":
            return self.weighted([(6, "der"), (1, "dies"), (2 if plural else 0, "number")])
        possessive = 1.0 if noun.group in ("dish", "fruit", "veg", "plant") else 2.5
        return self.weighted(
            [
                (4, "der"),
                (3, "ein"),
                (possessive, "possessive"),
                (1, "dies"),
                (2 if plural else 0, "number"),
            ]
        )

    def human_object(self, kind: str, subject: NounPhrase, case: str) -> NounPhrase:
        """Return a human object other than the subject.

        In the accusative, the object is never `sie`, which could mean "her" or "them".
        """
        draw = self.weighted([(3, "pronoun"), (3, "name"), (6, kind)])
        if draw == "pronoun":
            human = self.pick(PRONOUNS)
        elif draw == "name":
            human = self.name()
        elif kind == "kin":
            human = self.kin(subject)
        else:
            human = noun_phrase(
                noun := self.pick(nouns_of(kind)), *self.article(), self.adjective(noun, 0.4)
            )
        clash = human.en == subject.en or (human.person < 3 and human.person == subject.person)
        same = human.pronoun and human.row == subject.row
        return (
            self.human_object(kind, subject, case)
            if clash or same or human.de(case) == "-"
            else human
        )

    def article(self) -> tuple[str, bool]:
        """Return a determiner for a human object, and whether the object is plural."""
        word = self.among(der=6, ein=3, dies=1)
        return word, word != "ein" and self.chance(0.25)

    # Clauses

    def tense(self) -> tuple[str, str]:
        """Return a tense, and a modal verb or "", for a statement or a question."""
        kind = self.among(perf=36, habit=18, prog=9, fut=13, state=9, pres=11, past=4)
        if kind == "pres":
            return "pres", self.pick(list(g.MODALS))
        if kind == "past":
            return "perf", self.pick(["können", "müssen", "wollen", "dürfen"])
        return kind, ""

    def verb(self, tense: str, modal: str, frames: str) -> Verb:
        """Return a verb that has one of the given frames and can be used in the given tense."""
        barred = {
            "state": "",
            "habit": "BE",
            "prog": "BSX",
            "fut": "BSX",
            "perf": "B",
            "pres": "B",
        }[tense]
        if modal:
            barred = "BSX"
        weights = {
            "T": 1.0,
            "C": 1.5,
            "D": 2.5,
            "O": 2.0,
            "H": 1.3,
            "I": 1.8,
            "N": 1.2,
            "G": 3.0,
            "Y": 2.5,
            "L": 4.0,
            "U": 6.0,
        }
        options = [
            (weights[verb.frame[0]], verb)
            for verb in VERBS
            if verb.frame[0] in frames
            and not set(barred) & set(verb.flags)
            and (tense != "state" or "B" in verb.flags)
        ]
        return self.weighted(options)

    def time(self, tense: str, modal: str, verb: Verb) -> Pair | None:
        """Return a time adverb that agrees with the tense and the verb, or None."""
        if tense == "perf":
            kind = (
                "past_long"
                if verb.frame in ("Y", "L") or ("E" in verb.flags and self.chance(0.4))
                else "past"
            )
            return (
                self.pick(TIMES[self.weighted([(4, kind), (1, "day")])])
                if self.chance(0.65)
                else None
            )
        if tense == "fut" or modal:
            kind = (
                "future_long"
                if verb.frame in ("Y", "L") or ("E" in verb.flags and self.chance(0.4))
                else "future"
            )
            return (
                self.pick(TIMES[self.weighted([(3, kind), (1, "day")])])
                if self.chance(0.6)
                else None
            )
        return self.pick(TIMES["now"]) if tense == "prog" else None

    def timed(self, clause: Clause) -> Clause:
        """Add the time or frequency that the tense needs, and set the final tense."""
        tense = clause.tense
        if tense == "habit":
            clause = replace(clause, tense="pres")
            if self.chance(0.5):
                return replace(clause, time=self.pick(TIMES["habit"]))
            return replace(clause, frequency=self.pick(FREQUENCIES))
        time = self.time(tense, clause.modal, clause.verb)
        return replace(clause, time=time, tense="pres" if tense == "state" else tense)

    def clause(
        self,
        subject: NounPhrase,
        frames: str = "TCDOHINGYLU",
        fixed: str = "",
        modal: str = "",
        among: str = "",
    ) -> Clause:
        """Return a complete clause.

        If a tense is given as `fixed`, the clause gets no time. `among` lists verbs to choose from.
        """
        tense = fixed
        if not fixed:
            tense, modal = self.tense()
        verb = self.pick([v for v in VERBS if v.infinitive in among.split()]) if among else None
        verb = verb or self.verb(tense, modal, "TCLH" if tense == "state" else frames)
        clause = self.filled(Clause(subject, verb, tense, modal))
        if not fixed:
            return self.timed(clause)
        return replace(clause, tense="pres" if tense in ("state", "habit") else tense)

    def filled(self, clause: Clause) -> Clause:
        """Add the objects that the verb needs, and perhaps a place, a manner or a negation."""
        deniable = clause.tense not in ("habit", "prog") and clause.modal not in (
            "möchten",
            "können damit",
        )
        negated = deniable and clause.verb.frame not in ("C", "D", "O", "U") and self.chance(0.15)
        frames: dict[str, Callable[[Clause, bool], Clause]] = {
            "T": self.transitive,
            "C": self.collected,
            "D": self.ditransitive,
            "O": self.ditransitive,
            "H": self.dative,
            "I": self.with_preposition,
            "N": lambda clause, _: clause,
            "G": self.motion,
            "Y": self.journey,
            "L": self.stay,
            "U": self.laying,
        }
        clause = frames[clause.verb.frame[0]](clause, negated)
        clause = replace(clause, negated=negated and not clause.kein)
        return clause if negated else self.decorated(clause)

    def transitive(self, clause: Clause, negated: bool) -> Clause:
        """Add an accusative object. An indefinite object in a negated clause gets `kein`."""
        kind = self.pick(clause.verb.objects)
        if kind in ("person", "kin", "child"):
            human = self.human_object(kind, clause.subject, "acc")
            return self.with_object(clause, human, "acc")
        if (
            negated
            and "D" not in clause.verb.flags
            and ("W" in clause.verb.flags or self.chance(0.5))
        ):
            return self.with_kein(clause, kind)
        thing = self.thing(kind, clause.subject)
        while not suits(clause.verb, thing, negated):
            thing = self.thing(kind, clause.subject)
        return self.with_object(clause, thing, "acc")

    def with_kein(self, clause: Clause, kind: str) -> Clause:
        """Add an object with `kein`. English negates the verb instead."""
        noun = self.pick(nouns_of(kind))
        plural = not noun.mass and self.chance(0.35)
        phrase = noun_phrase(noun, "kein", plural, self.adjective(noun, 0.4))
        return replace(clause, middle=phrase.de("acc"), en=phrase.en_object, kein=True)

    def with_object(self, clause: Clause, phrase: NounPhrase, case: str) -> Clause:
        """Add one object, which may come first in the sentence if its form shows its case."""
        if phrase.pronoun:
            if clause.verb.en.endswith(" up"):
                return replace(clause, pronoun=phrase.de(case), infix=phrase.en_object)
            return replace(clause, pronoun=phrase.de(case), en=phrase.en_object)
        shows = phrase.de(case).split()[0] in ("den", "dem", "einen", "einem", "diesen", "diesem")
        shows = shows and not phrase.plural and not clause.subject.plural
        return replace(clause, middle=phrase.de(case), en=phrase.en_object, frontable=shows)

    def collected(self, clause: Clause, negated: bool) -> Clause:
        """Add a plural object."""
        noun = self.pick(nouns_of(self.pick(clause.verb.objects)))
        word = self.weighted([(3, ""), (4, "der"), (1, "mein"), (1, "dein")])
        return self.with_object(
            clause, noun_phrase(noun, word, True, self.adjective(noun, 0.6)), "acc"
        )

    def ditransitive(self, clause: Clause, negated: bool) -> Clause:
        """Add a dative and an accusative object."""
        human = self.human_object(self.pick(["person", "kin", "child"]), clause.subject, "dat")
        what = self.thing(self.pick(clause.verb.objects), clause.subject)
        while human.en.startswith(("a ", "an ")) and not what.de("acc").startswith("ein"):
            human = self.human_object("person", clause.subject, "dat")
        en = f"{human.en_object} {what.en_object}"
        if clause.verb.frame == "O":
            split = " " in clause.verb.en
            clause = replace(clause, infix=what.en_object if split else "")
            en = joined("" if split else what.en_object, f"to {human.en_object}")
        if human.pronoun:
            return replace(clause, pronoun=human.de("dat"), middle=what.de("acc"), en=en)
        return replace(clause, middle=f"{human.de('dat')} {what.de('acc')}", en=en)

    def dative(self, clause: Clause, negated: bool) -> Clause:
        """Add a dative object."""
        kind = self.pick(clause.verb.objects)
        if kind == "animal":
            return self.with_object(clause, self.thing(kind, clause.subject), "dat")
        return self.with_object(clause, self.human_object(kind, clause.subject, "dat"), "dat")

    def with_preposition(self, clause: Clause, negated: bool) -> Clause:
        """Add the verb's prepositional object."""
        german, case, english = clause.verb.frame[1:].split("/")
        kind = self.pick(clause.verb.objects)
        human = kind in ("person", "kin", "child")
        phrase = (
            self.human_object(kind, clause.subject, case)
            if human
            else self.thing(kind, clause.subject)
        )
        return replace(
            clause, tail=prepositional(german, phrase.de(case)), en=f"{english} {phrase.en_object}"
        )

    def place(self, lemmas: str = "") -> Pair:
        """Return a place where something happens."""
        names = lemmas.split() or [name for name in PLACES if name not in OUTLOOK.split()]
        noun = NOUN[self.pick(names)]
        at, _ = PLACES[noun.singular]
        phrase = noun_phrase(noun, self.among(der=8, dies=1), False, self.adjective(noun, 0.2))
        return Pair(prepositional(at.de, phrase.de("dat")), f"{at.en} {phrase.en}")

    def city(self) -> Pair:
        """Return a city where something happens."""
        city = self.pick(CITIES)
        return Pair(f"in {city.de}", f"in {city.en}")

    def motion(self, clause: Clause, negated: bool) -> Clause:
        """Add the place that someone goes to."""
        lemmas = {"fahren": DRIVE, "wandern": HIKE}.get(clause.verb.infinitive, " ".join(PLACES))
        noun = NOUN[self.pick(lemmas.split())]
        _, to = PLACES[noun.singular]
        phrase = noun_phrase(noun, self.among(der=9, dies=1), False, self.adjective(noun, 0.2))
        german = phrase.de("acc" if to.de == "in" else "dat")
        return replace(clause, tail=prepositional(to.de, german), en=f"{to.en} {phrase.en}")

    def journey(self, clause: Clause, negated: bool) -> Clause:
        """Add the city that someone travels to."""
        city = self.pick(CITIES)
        return replace(clause, tail=f"nach {city.de}", en=f"to {city.en}")

    def stay(self, clause: Clause, negated: bool) -> Clause:
        """Add the place where someone lives or stays."""
        lemmas = LIVE if clause.verb.infinitive == "wohnen" else STAY
        where = self.among(city=3, place=2, kin=2)
        if where == "kin":
            kin = self.kin(clause.subject)
            return replace(clause, tail=f"bei {kin.de('dat')}", en=f"with {kin.en}")
        place = self.city() if where == "city" else self.place(lemmas)
        return replace(clause, tail=place.de, en=place.en)

    def laying(self, clause: Clause, negated: bool) -> Clause:
        """Add the thing that someone lays somewhere, and the place."""
        what = self.thing("portable", clause.subject)
        where = self.spot("acc")
        return replace(clause, middle=what.de("acc"), tail=where.de, en=f"{what.en} {where.en}")

    def spot(self, case: str) -> Pair:
        """Return a place such as `on the table`.

        `case` is "dat" if something is there and "acc" if something is put there.
        """
        german = self.weighted([(4, "auf"), (3, "in"), (1, "unter"), (2, "neben"), (1, "hinter")])
        english, lemmas = CHAIRS[german]
        noun = NOUN[self.pick(lemmas.split())]
        phrase = noun_phrase(noun, self.among(der=5, ein=1), False, self.adjective(noun, 0.4))
        return Pair(prepositional(german, phrase.de(case)), f"{english} {phrase.en}")

    def decorated(self, clause: Clause) -> Clause:
        """Perhaps add a place or a manner, if the verb allows it."""
        verb = clause.verb
        if "P" in verb.flags and self.chance(0.35):
            lemmas = PLACED.get(verb.infinitive, "")
            return replace(
                clause, place=self.city() if not lemmas and self.chance(0.3) else self.place(lemmas)
            )
        often = 0.6 if verb.frame == "N" else 0.2
        if "M" in verb.flags and self.chance(often) and not clause.tail:
            manner = self.pick(g.MANNERS.get(verb.infinitive, g.MANNERS[""]))
            if (clause.modal or clause.tense == "habit") and manner.de in ("gut", "schlecht"):
                return clause
            return replace(clause, tail=manner.de, en=joined(clause.en, manner.en))
        return clause

    def state(self, subject: NounPhrase, tense: str, states: Sequence[str] = STATES) -> Clause:
        """Return a clause about how someone is, such as `müde sein` or `Zeit haben`."""
        state = self.pick(states)
        if state in g.HAVINGS:
            verb, en = g.HAVINGS[state]
            having = PLAIN_VERBS["haben"]
            having = replace(having, en="be", en_past="was") if verb == "be" else having
            return Clause(subject, having, tense, tail=state, en=en)
        return Clause(subject, PLAIN_VERBS["sein"], tense, tail=state, en=g.STATES[state].en)

    def why(self, main: Clause, subject: NounPhrase, tense: str) -> Clause:
        """Return a clause that gives the reason for the main clause."""
        denied = main.denied
        moving = main.verb.frame in ("G", "Y") or main.verb.infinitive in (
            "aufstehen",
            "abreisen",
            "einkaufen",
        )
        if denied and self.chance(0.5):
            return self.errand(subject, tense, "müssen")
        if moving and not denied and self.chance(0.75):
            return self.errand(subject, tense, self.pick(["wollen", "müssen"]), TRIP_AIMS)
        fitting = [
            state for state, verbs in HUNGER.items() if main.verb.infinitive in verbs.split()
        ]
        return self.state(subject, tense, affordable(WHY_NOT if denied else fitting or WHY, main))

    def errand(self, subject: NounPhrase, tense: str, modal: str, among: str = DUTIES) -> Clause:
        """Return a clause about something that someone has to do or wants to do."""
        clause = self.clause(subject, fixed=tense, modal=modal, among=among)
        while clause.denied:
            clause = self.clause(subject, fixed=tense, modal=modal, among=among)
        return clause

    def despite(self, main: Clause, subject: NounPhrase, tense: str) -> Clause:
        """Return a clause about what could have prevented the main clause."""
        if self.chance(0.35):
            return self.errand(subject, tense, "müssen")
        return self.state(subject, tense, affordable(DESPITE, main))

    # Sentences

    def front(self, clause: Clause) -> str:
        """Choose what comes first: "object", "time", "place", or "" for the subject."""
        if clause.frontable and self.chance(0.5):
            return "object"
        early = clause.time is not None and clause.tense in ("perf", "fut", "pres")
        if early and self.chance(0.45):
            return "time"
        busy = clause.time is not None or clause.frequency is not None
        return "place" if clause.place and not busy and self.chance(0.4) else ""

    def statement(self) -> Pair:
        """Return a simple statement."""
        clause = self.clause(self.subject())
        return self.written(clause)

    def written(self, clause: Clause) -> Pair:
        """Write a main clause with a random word order."""
        front = self.front(clause)
        return Pair(german_main(clause, front), english_main(clause, front))

    def reason(self) -> Pair:
        """Return a main clause with a `weil`, `obwohl` or `wenn` clause before or after it."""
        subject = self.anaphoric_subject()
        kind = self.among(weil=4, obwohl=3, wenn=2)
        if kind == "wenn":
            return self.condition(subject)
        tense = self.pick(["perf", "perf", "perf", "habit", "prog"])
        main = self.clause(subject, fixed=tense)
        if tense == "prog" or (tense == "perf" and self.chance(0.3)):
            main = replace(main, time=self.time(tense, "", main.verb))
        if tense == "habit":
            main = replace(main, frequency=self.pick(FREQUENCIES[:3]))
        when = "perf" if tense == "perf" else "pres"
        if kind == "weil":
            if "X" in main.verb.flags:
                return self.reason()
            return self.linked(main, self.why(main, subject, when), Pair("weil", "because"))
        if main.denied:
            return self.reason()
        return self.linked(main, self.despite(main, subject, when), Pair("obwohl", "although"))

    def condition(self, subject: NounPhrase) -> Pair:
        """Return a main clause with a `wenn` clause about a state that makes it possible."""
        tense = self.pick(["fut", "pres"])
        modal = "" if tense == "fut" else self.pick(["können", "sollen", "dürfen", "wollen"])
        main = self.clause(subject, fixed=tense, modal=modal)
        while main.denied:
            main = self.clause(subject, fixed=tense, modal=modal)
        return self.linked(
            main, self.state(subject, "pres", affordable(PROVIDED, main)), Pair("wenn", "if")
        )

    def linked(self, main: Clause, sub: Clause, link: Pair) -> Pair:
        """Join a main and a subordinate clause that have the same subject.

        The clause that comes second gets a pronoun as its subject.
        """
        if self.chance(0.35):
            main = replace(main, subject=anaphor(main.subject))
            german = f"{link.de} {german_last(sub)}, {german_main(main, '-')}"
            return Pair(german, f"{link.en} {english_main(sub)}, {english_main(main)}")
        sub = replace(sub, subject=anaphor(sub.subject))
        comma = "," if link.en == "although" else ""
        front = self.front(main)
        return Pair(
            f"{german_main(main, front)}, {link.de} {german_last(sub)}",
            f"{english_main(main, front)}{comma} {link.en} {english_main(sub)}",
        )

    def sequence(self) -> Pair:
        """Return a main clause with a `bevor` or `sobald` clause that has the same subject."""
        subject = self.anaphoric_subject()
        if self.chance(0.55):
            main = self.clause(subject, "TDHINGU", "perf")
            sub = self.clause(subject, "TNGY", "perf")
            if "S" in sub.verb.flags or (sub.tail and sub.verb.frame == "N"):
                return self.sequence()
            link = Pair("bevor", "before")
        else:
            main = self.clause(subject, "TDHIG", "fut")
            sub = self.clause(subject, fixed="pres", among=ARRIVALS)
            if sub.tail or self.chance(0.3):
                sub = self.state(subject, "pres", PROVIDED[:3])
            link = Pair("sobald", "as soon as")
        if (
            main.verb == sub.verb
            or sub.negated
            or main.negated
            or main.kein
            or sub.kein
            or {"X", "E"} & {*main.verb.flags}
        ):
            return self.sequence()
        return self.linked(main, sub, link)

    def meanwhile(self) -> Pair:
        """Return a sentence about two people who did two things at the same time."""
        subject = self.other_subject(NO_PHRASE)
        main = self.clause(subject, "TDHING", "perf")
        sub = self.clause(self.other_subject(subject), "TINI", "perf")
        denied = sub.negated or main.denied or sub.kein
        odd = {"S", "X", "E"} & {*main.verb.flags, *sub.verb.flags}
        if (
            denied
            or odd
            or main.verb == sub.verb
            or PERSONAL & {*main.en.split(), *sub.en.split(), main.infix, sub.infix}
        ):
            return self.meanwhile()
        if self.chance(0.35):
            return Pair(
                f"während {german_last(sub)}, {german_main(main, '-')}",
                f"while {english_main(sub)}, {english_main(main)}",
            )
        return Pair(
            f"{german_main(main)}, während {german_last(sub)}",
            f"{english_main(main)} while {english_main(sub)}",
        )

    def purpose(self) -> Pair:
        """Return a main clause with a `damit` clause about what someone else can then do."""
        subject = self.subject()
        past = self.chance(0.5)
        main = self.clause(subject, fixed="perf" if past else "fut", among=HELPFUL)
        sub = self.clause(
            self.other_subject(subject),
            fixed="perf" if past else "pres",
            modal="können damit",
            among=FREED,
        )
        if (
            main.negated
            or main.kein
            or sub.negated
            or sub.kein
            or (sub.frontable and main.frontable)
        ):
            return self.purpose()
        return Pair(
            f"{german_main(main)}, damit {german_last(sub)}",
            f"{english_main(main)} so that {english_main(sub)}",
        )

    def reported(self) -> Pair:
        """Return a `dass` clause after a verb of saying or thinking, or after a judgement."""
        subject = self.subject()
        sub = self.clause(self.other_subject(subject))
        if sub.tense == "prog" or self.chance(0.25):
            sub = self.state(sub.subject, self.pick(["perf", "pres"]))
        if self.chance(0.3):
            judged = self.pick(JUDGEMENTS)
            return Pair(
                f"es ist {judged.de}, dass {german_last(sub)}",
                f"it is {judged.en} that {english_main(sub)}",
            )
        verb = PLAIN_VERBS[self.pick(["sagen", "glauben", "hoffen", "wissen", "vergessen"])]
        tense = "perf" if verb.infinitive in ("sagen", "vergessen") else "pres"
        main = Clause(subject, verb, tense)
        return Pair(
            f"{german_main(main)}, dass {german_last(sub)}",
            f"{english_main(main)} that {english_main(sub)}",
        )

    def wondered(self) -> Pair:
        """Return an indirect question."""
        subject = self.subject()
        sub = self.clause(self.other_subject(subject))
        main = Clause(subject, PLAIN_VERBS["wissen"], negated=self.chance(0.75))
        if sub.denied:
            main = replace(main, negated=False)
        options = [*asking(sub), (3.0 * main.negated, Pair("ob", "whether"))]
        link = self.weighted(options)
        return Pair(
            f"{german_main(main)}, {link.de} {german_last(sub)}",
            f"{english_main(main)} {link.en} {english_main(sub)}",
        )

    def yes_no(self) -> Pair:
        """Return a yes/no question."""
        clause = self.clause(self.subject())
        return Pair(german_main(clause, "-") + "?", english_question(clause) + "?")

    def wh_question(self) -> Pair:
        """Return a question with a question word."""
        if self.chance(0.5):
            return self.gap_question()
        clause = self.clause(self.subject())
        word = self.weighted(asking(clause))
        return Pair(german_main(clause, word.de) + "?", english_question(clause, word.en) + "?")

    def gap_question(self) -> Pair:
        """Return a question about the subject or an object, with `wer` or `welch`."""
        if self.chance(0.35):
            clause = self.clause(QUESTIONED)
            return Pair(german_main(clause) + "?", english_main(clause) + "?")
        clause, kind = self.gapped(self.subject())
        case, english = gap_case(clause.verb)
        if kind not in ("person", "kin", "child"):
            noun = self.pick(nouns_of(kind))
            asked = noun_phrase(
                noun, "welch", not noun.mass and self.chance(0.3), self.adjective(noun, 0.4)
            )
        else:
            asked = QUESTIONED
        german = joined(clause.verb.frame[1:].split("/")[0], asked.de(case))
        return Pair(
            german_main(clause, german) + "?", english_question(clause, asked.en, english) + "?"
        )

    def gapped(self, subject: NounPhrase) -> tuple[Clause, str]:
        """Return a clause without its object, and the kind of noun that the object would be."""
        tense = self.among(perf=7, fut=2, pres=2)
        modal = self.pick(["können", "müssen", "wollen"]) if tense == "pres" else ""
        verb = self.verb(tense, modal, "THI")
        while "Q" not in verb.flags:
            verb = self.verb(tense, modal, "THI")
        clause = Clause(subject, verb, tense, modal)
        timed = self.chance(0.6) and not verb.en.endswith(" on")
        time = self.time(tense, modal, verb) if timed else None
        return replace(clause, time=time), self.pick(verb.objects)

    def predicate(self) -> Pair:
        """Return a sentence with `sein`: a state, a trade, a place or an age."""
        kind = self.among(state=3, trade=4, age=2, where=2, likeness=2)
        if kind == "age":
            clause = self.age()
        elif kind == "trade":
            clause = self.trade()
        elif kind == "likeness":
            clause = self.likeness()
        elif kind == "where":
            where = self.city() if self.chance(0.3) else self.place()
            clause = Clause(
                self.subject(),
                PLAIN_VERBS["sein"],
                "perf",
                tail=where.de,
                en=where.en,
                time=self.past(),
            )
        else:
            clause = replace(self.state(self.subject(), "perf"), time=self.past())
        return self.written(clause)

    def age(self) -> Clause:
        """Return a clause about how old someone is."""
        noun = NOUN[self.pick(list(AGES))]
        if self.chance(0.5):
            subject, years = self.name(), str(self.number(13, 89))
        else:
            word, english = self.possessive(None)
            subject = noun_phrase(noun, word, False, self.adjective(noun, 0.4), english)
            years = str(self.number(*AGES[noun.singular]))
        return Clause(
            subject, PLAIN_VERBS["sein"], tail=f"{years} Jahre alt", en=f"{years} years old"
        )

    def past(self) -> Pair:
        """Return a time in the past."""
        return self.pick(TIMES["past"])

    def trade(self) -> Clause:
        """Return a clause about someone's trade, such as `Anna ist eine gute Ärztin`."""
        someone = self.name()
        fitting = [
            noun for noun in map(NOUN.__getitem__, TRADES.split()) if noun.gender == someone.gender
        ]
        noun = self.pick(fitting)
        phrase = noun_phrase(noun, self.pick(["ein", "kein"]), False, self.adjective(noun, 1))
        city = self.pick(CITIES)
        denied = phrase.de("nom").startswith("kein")
        return Clause(
            someone,
            PLAIN_VERBS["sein"],
            self.pick(["pres", "perf"]),
            middle=phrase.de("nom"),
            tail=f"aus {city.de}",
            en=f"{phrase.en} from {city.en}",
            kein=denied,
        )

    def likeness(self) -> Clause:
        """Return a comparison of two people with `so ... wie`."""
        subject = self.subject()
        other = self.name() if self.chance(0.5) else self.kin(None)
        while other.en == subject.en:
            other = self.name()
        fit = [a for a in g.ADJECTIVES if "person" in a.groups]
        adjective = self.pick(fit)
        denied = self.chance(0.4)
        return Clause(
            subject,
            PLAIN_VERBS["sein"],
            self.pick(["pres", "perf"]),
            negated=denied,
            tail=f"so {adjective.de} wie {other.de('nom')}",
            en=f"as {adjective.en} as {other.en}",
        )

    def scene(self) -> Pair:
        """Return a sentence about what exists at a place, or about a thing.

        A sentence about a thing says where it lies, what it costs, or whom it belongs to.
        """
        kind = self.among(there=4, lies=3, costs=2, belongs=2)
        if kind == "there":
            return self.there_is()
        what = self.thing("price" if kind == "costs" else "portable", NO_PHRASE)
        while not what.de("nom").startswith(("die", "der", "das")):
            what = self.thing("price" if kind == "costs" else "portable", NO_PHRASE)
        return self.written(self.about(what, kind))

    def about(self, what: NounPhrase, kind: str) -> Clause:
        """Return a clause about where a thing lies, what it costs, or whom it belongs to."""
        if kind == "lies":
            spot = self.spot("dat")
            clause = Clause(what, PLAIN_VERBS["liegen"], "pres", tail=spot.de, en=spot.en)
            return replace(clause, frequency=self.pick(FREQUENCIES)) if self.chance(0.4) else clause
        if kind == "costs":
            price = str(self.number(13, 98))
            where = (
                self.city()
                if self.chance(0.6)
                else self.place("Markt Bahnhof Flughafen Museum Dorf")
            )
            return Clause(
                what,
                PLAIN_VERBS["kosten"],
                place=where,
                tail=f"{price} Euro",
                en=f"{price} euros",
            )
        owner = self.human_object(self.pick(["person", "kin", "child"]), NO_PHRASE, "dat")
        return Clause(
            what, PLAIN_VERBS["gehören"], middle=owner.de("dat"), en=f"to {owner.en_object}"
        )

    def there_is(self) -> Pair:
        """Return a `there is` sentence. The place comes first or last in both languages."""
        outside = self.chance(0.5)
        where = self.place(
            "Garten Park Wald Dorf Strand See Fluss"
            if outside
            else f"{INSIDE} Schule Theater Museum Bibliothek Kirche"
        )
        noun = self.pick(
            nouns_of(self.pick(["plant", "animal"] if outside else ["furniture", "instrument"]))
        )
        adjective = self.adjective(noun, 0.8)
        if self.chance(0.5):
            number = self.pick(NUMBERS if outside else NUMBERS[:3])
            phrase = noun_phrase(noun, number.de, True, adjective, number.en)
        else:
            phrase = noun_phrase(noun, "ein", False, adjective)
        be = "are" if phrase.plural else "is"
        if self.chance(0.5):
            return Pair(
                f"{where.de} gibt es {phrase.de('acc')}", f"{where.en} there {be} {phrase.en}"
            )
        return Pair(f"es gibt {phrase.de('acc')} {where.de}", f"there {be} {phrase.en} {where.en}")

    def infinitive(self) -> Pair:
        """Return a sentence with `um ... zu`, or `versuchen` or `vergessen` and an infinitive."""
        subject = self.subject()
        aimed = self.chance(0.55)
        frame = self.pick(["G", "Y"])
        if aimed:
            inner = self.errand(subject, "pres", "können", AIMS if frame == "G" else TRIP_AIMS)
        else:
            inner = self.clause(subject, "TDONH", "pres", "können")
        clumsy = (
            inner.tail and inner.verb.frame != "N"
        ) or inner.verb.infinitive in MISHAPS.split()
        if inner.denied or (clumsy and not aimed):
            return self.infinitive()
        inner = replace(inner, modal="", place=None if aimed else inner.place)
        main = (
            self.clause(subject, frame, self.pick(["perf", "fut", "perf"]))
            if aimed
            else self.attempt(subject)
        )
        if main.negated:
            return self.infinitive()
        front = "time" if main.time else ""
        german = ("um " if aimed else "") + g.german_infinitive(inner)
        english = g.english_infinitive(inner)
        return Pair(
            f"{german_main(main, front)}, {german}", f"{english_main(main, front)} {english}"
        )

    def attempt(self, subject: NounPhrase) -> Clause:
        """Return a clause with `versuchen` or `vergessen`."""
        verb = PLAIN_VERBS[self.pick(["versuchen", "vergessen"])]
        main = Clause(
            subject,
            verb,
            "perf" if verb.infinitive == "vergessen" else self.pick(["perf", "pres"]),
        )
        return replace(
            main, time=self.past() if main.tense == "perf" and self.chance(0.4) else None
        )

    def coordination(self) -> Pair:
        """Return two main clauses joined by `und` or `aber`."""
        subject = self.subject()
        tense = self.pick(["perf", "fut", "perf"])
        first = self.clause(subject, "TDHINGY", tense)
        second = self.clause(self.other_subject(subject), "THINGY", tense)
        if first.verb == second.verb or PERSONAL & {
            *first.en.split(),
            *second.en.split(),
            first.infix,
            second.infix,
        }:
            return self.coordination()
        one_denied = (first.denied) != (second.denied)
        link = Pair("aber", "but") if one_denied or self.chance(0.2) else Pair("und", "and")
        return Pair(
            f"{german_main(first)}, {link.de} {german_main(second)}",
            f"{english_main(first)}, {link.en} {english_main(second)}",
        )

    def relative(self) -> Pair:
        """Return a sentence with a relative clause about its subject or object."""
        kind = self.weighted([(3, self.doer), (4, self.thing_done), (3, self.someone_known)])
        return kind()

    def doer(self) -> Pair:
        """Return a sentence whose human subject has a relative clause."""
        head = self.person(self.among(der=5, dies=1))
        german, english = self.relative_clause(head)
        if self.chance(0.35):
            main = self.state(head, self.pick(["pres", "perf"]))
        else:
            main = self.clause(head, "TDHINGYL", self.pick(["perf", "fut", "perf"]))
        marked = replace(main, subject=extended(head, f", {german},", f" {english}"))
        return Pair(german_main(marked), english_main(marked))

    def relative_clause(self, head: NounPhrase) -> tuple[str, str]:
        """Return a relative clause about a person, in both languages.

        In the relative clause, the person is the subject, the object or the prepositional object.
        """
        if self.chance(0.5):
            pronoun = relative_pronoun(head, "nom")
            who = NounPhrase((pronoun, "", ""), "who", "", plural=head.plural, gender=head.gender)
            clause = self.clause(who, "TDHINGYL", self.pick(["perf", "state", "perf"]))
            return german_last(clause), english_main(clause)
        clause, _ = self.human_gap()
        while ambiguous(head, clause):
            clause, _ = self.human_gap()
        case, english = gap_case(clause.verb)
        german = joined(clause.verb.frame[1:].split("/")[0], relative_pronoun(head, case))
        whom = f"{english} whom" if english else "whom"
        return f"{german} {german_last(clause)}", f"{whom} {english_main(clause)}"

    def human_gap(self) -> tuple[Clause, str]:
        """Return a clause that lacks a human object."""
        subject = self.other_subject(NO_PHRASE)
        clause, kind = self.gapped(subject)
        while kind not in ("person", "child") or "person" not in clause.verb.objects:
            clause, kind = self.gapped(subject)
        return clause, kind

    def thing_done(self) -> Pair:
        """Return a sentence about a thing that is described by a relative clause."""
        clause, kind = self.gapped(self.subject())
        while clause.verb.frame != "T" or kind not in (
            "portable",
            "thing",
            "text",
            "cloth",
            "instrument",
            "device",
        ):
            clause, kind = self.gapped(self.subject())
        noun = self.pick(nouns_of(kind))
        head = noun_phrase(
            noun,
            self.among(der=5, dies=1),
            self.chance(0.3),
            self.adjective(noun, 0.4),
        )
        german = f"{relative_pronoun(head, 'acc')} {german_last(clause)}"
        bought = clause.verb.infinitive in ("kaufen", "verkaufen")
        main = self.about(
            head,
            self.pick(["lies", "belongs", "costs", "costs"] if bought else ["lies", "belongs"]),
        )
        main = replace(
            main,
            frequency=None,
            subject=extended(head, f", {german},", f" which {english_main(clause)}"),
        )
        return Pair(german_main(main), english_main(main))

    def someone_known(self) -> Pair:
        """Return a statement that ends with a relative clause about its human object."""
        subject = self.other_subject(NO_PHRASE)
        head = self.person(self.among(der=5, ein=2))
        tense = self.pick(["perf", "perf", "fut", "state"])
        verb = self.verb(tense, "", "TH")
        while "person" not in verb.objects:
            verb = self.verb(tense, "", "TH")
        case, _ = gap_case(verb)
        main = Clause(
            subject, verb, "pres" if tense == "state" else tense, middle=head.de(case), en=head.en
        )
        main = replace(main, time=self.past() if tense == "perf" and self.chance(0.5) else None)
        front = "time" if main.time else ""
        german, english = self.relative_clause(head)
        return Pair(
            f"{german_main(main, front)}, {german}", f"{english_main(main, front)} {english}"
        )

    def sentence(self) -> Pair:
        """Return one sentence pair, capitalized and with its final punctuation mark."""
        make = self.weighted(
            [
                (24.0, self.statement),
                (13.0, self.reason),
                (7.0, self.sequence),
                (4.0, self.meanwhile),
                (3.0, self.purpose),
                (8.0, self.reported),
                (5.0, self.wondered),
                (6.0, self.yes_no),
                (7.0, self.wh_question),
                (6.0, self.predicate),
                (6.0, self.scene),
                (6.0, self.infinitive),
                (6.0, self.coordination),
                (11.0, self.relative),
            ]
        )
        pair = make()
        return Pair(finished(pair.de), finished(pair.en))


def anaphor(subject: NounPhrase) -> NounPhrase:
    """Return the pronoun for a subject, or NO_PHRASE if its gender differs in the two languages."""
    if subject.pronoun:
        return subject
    if subject.plural:
        return PRONOUNS[6]
    return {"m": PRONOUNS[2], "f": PRONOUNS[3]}.get(subject.gender, NO_PHRASE)


def asking(clause: Clause) -> list[tuple[float, Pair]]:
    """Return the question words that can ask about a clause, with weights."""
    options = [(2.0, Pair("warum", "why"))]
    if clause.denied or clause.tense not in ("perf", "fut"):
        return options
    if clause.time is None and clause.frequency is None:
        options.append((3.0, Pair("wann", "when")))
    movable = clause.verb.frame in ("T", "N") and "S" not in clause.verb.flags
    if clause.place is None and movable and clause.tense == "perf" and not clause.tail:
        options.append((4.0, Pair("wo", "where")))
    return options


def ambiguous(head: NounPhrase, clause: Clause) -> bool:
    """Return whether a relative pronoun that means "whom" could also be read as "who".

    It could if it has the same form in both cases and so does the subject of the clause.
    """
    subject = clause.subject
    return (
        gap_case(clause.verb) == ("acc", "")
        and relative_pronoun(head, "acc") == relative_pronoun(head, "nom")
        and subject.de("nom") == subject.de("acc")
    )


def suits(verb: Verb, phrase: NounPhrase, negated: bool) -> bool:
    """Return whether an object's determiner suits the verb and, if negated, also suits `nicht`."""
    first = phrase.de("acc").split()[0]
    possessive = first.startswith(POSSESSED)
    definite = possessive or first in ("der", "die", "das", "den") or first.startswith("dies")
    if ("D" in verb.flags or negated) and not definite:
        return False
    return not (("W" in verb.flags and definite) or ("F" in verb.flags and possessive))


def affordable(states: Sequence[str], main: Clause) -> list[str]:
    """Return the states, but those about money only if the main clause costs money."""
    return [
        state
        for state in states
        if not state.endswith("Geld") or main.verb.infinitive in COSTLY.split()
    ]


def gap_case(verb: Verb) -> tuple[str, str]:
    """Return the case and the English preposition of a verb's object."""
    if verb.frame[0] == "I":
        _, case, english = verb.frame[1:].split("/")
        return case, english
    return ("dat" if verb.frame == "H" else "acc"), ""


def extended(phrase: NounPhrase, german: str, english: str) -> NounPhrase:
    """Return the noun phrase followed by a relative clause."""
    nom, acc, dat = (case + german for case in phrase.cases)
    return replace(phrase, cases=(nom, acc, dat), en=phrase.en + english)


def finished(words: str) -> str:
    """Return the sentence, capitalized and with its final punctuation mark."""
    return words[0].upper() + words[1:] + ("" if words.endswith("?") else ".")


def fits(pair: Pair) -> bool:
    """Return whether the numbers of words on both sides are within the limits."""
    lengths = (len(pair.de.split()), len(pair.en.split()))
    return min(lengths) >= SHORTEST and max(lengths) <= LONGEST


def draw_pairs(seed: int, count: int) -> list[Pair]:
    """Draw `count` pairs in which no sentence of either language occurs twice."""
    speaker = Speaker(seed)
    german: dict[str, str] = {}
    english: dict[str, str] = {}
    while len(german) < count:
        pair = speaker.sentence()
        if not fits(pair):
            continue
        if german.get(pair.de, pair.en) != pair.en:
            raise ValueError(
                f"one source has two targets: {pair.de} -> {german[pair.de]} / {pair.en}"
            )
        if pair.de not in german and pair.en not in english:
            german[pair.de] = pair.en
            english[pair.en] = pair.de
    return [Pair(de, en) for de, en in german.items()]


def write_corpus(out: Path, seed: int = DEFAULT_SEED) -> dict[str, int]:
    """Write the six files into `out`, and return the number of pairs in each part."""
    out.mkdir(parents=True, exist_ok=True)
    pairs = draw_pairs(seed, sum(SIZES.values()))
    start = 0
    for part, size in SIZES.items():
        part_pairs = pairs[start : start + size]
        start += size
        for language in ("de", "en"):
            text = "".join(f"{getattr(pair, language)}\n" for pair in part_pairs)
            (out / f"{part}.{language}").write_bytes(text.encode("utf-8"))
    return dict(SIZES)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, and write the corpus."""
    parser = argparse.ArgumentParser(description="Write the made-up German-English sample corpus.")
    parser.add_argument(
        "--out", type=Path, default=DEFAULT_OUT, help="folder to write to (default: %(default)s)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=DEFAULT_SEED,
        help="seed for the random choices (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    for part, size in write_corpus(options.out, options.seed).items():
        print(f"{part}: {size} pairs")


if __name__ == "__main__":
    main()
