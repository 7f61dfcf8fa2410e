"""How one question is asked in several ways, by templates, in English and German.

Each shape of question has wordings to train on and other wordings that are never trained, to see whether the model
answers what was asked or only how it was asked. The first wording is the question itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Wordings", "reword", "wordings"]


@dataclass(frozen=True)
class Wordings:
    """`question` and `phrasings` are trained on, `held_out` are not."""

    question: str
    phrasings: tuple[str, ...]
    held_out: tuple[str, ...]


# shape → (trained wordings, held-out wordings); braces are filled by `wordings`.
ENGLISH: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "term": (
        ("What is {term}?", "What does {bare} mean?", "Define {bare}.", "Explain the term {bare}."),
        ("What do you understand by {bare}?", "Could you tell me what {bare} means?"),
    ),
    "terms": (
        ("What are {term}?", "What does the term {bare} mean?", "Define {bare}.", "Explain what {term} are."),
        ("What do you understand by {bare}?", "Could you tell me what {term} are?"),
    ),
    "meaning": (
        ("What does {bare} mean?", "What is the meaning of {bare}?", "Define {bare}.", "What is meant by {bare}?"),
        ("How would you explain {bare}?", "Could you tell me what {bare} stands for?"),
    ),
    "item": (
        (
            'What does "{title}" say about "{term}"?',
            'How does "{title}" describe "{term}"?',
            'What is "{term}" in "{title}"?',
            '"{title}": what stands under "{term}"?',
        ),
        ('In "{title}", what is said on "{term}"?', 'Could you explain "{term}" as it is used in "{title}"?'),
    ),
    "topic": (
        (
            'What does "{title}" say about "{term}"?',
            'What is written about "{term}" in "{title}"?',
            '"{title}": what should I know about "{term}"?',
            'Tell me about "{term}" from "{title}".',
        ),
        ('According to "{title}", what about "{term}"?', 'What can I read on "{term}" in "{title}"?'),
    ),
    "about": (
        ('What is "{title}" about?', 'What does the document "{title}" cover?', 'Tell me about "{title}".'),
        ('What can I learn from "{title}"?', 'Give me the gist of "{title}".'),
    ),
    "table": (
        (
            "What is the {column} for {row}?",
            "What {column} does {row} have?",
            "Tell me the {column} of {row}.",
            "{row}: what is the {column}?",
        ),
        ("Which {column} goes with {row}?", "I would like to know the {column} for {row}."),
    ),
    "tables": (
        (
            "What are the {column} for {row}?",
            "What {column} does {row} have?",
            "Tell me the {column} of {row}.",
            "{row}: what are the {column}?",
        ),
        ("Which {column} go with {row}?", "I would like to know the {column} for {row}."),
    ),
    "price": (
        (
            "What is the {column} for {row}?",
            "How much is {row}?",
            "What do you charge for {row}?",
            "Tell me the {column} of {row}.",
        ),
        ("How much does {row} cost?", "What would I pay for {row}?"),
    ),
    "person": (
        (
            "Who is the {column} for {row}?",
            "Who is responsible for {row} as {column}?",
            "Tell me the {column} for {row}.",
            "{row}: who is the {column}?",
        ),
        ("Whom do I find as the {column} of {row}?", "Which person is the {column} for {row}?"),
    ),
    "asked": (
        (
            "{question}",
            "I have a question: {question}",
            "Please tell me: {question}",
            "I would like to know: {question}",
        ),
        ("Can you help me with this? {question}", "Something I wonder about: {question}"),
    ),
}
GERMAN: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "term": (
        ("Was ist {term}?", "Was bedeutet {bare}?", "Was versteht man unter {bare}?", "Erkläre den Begriff {bare}."),
        ("Was meint man mit {bare}?", "Kannst du mir sagen, was {bare} bedeutet?"),
    ),
    "terms": (
        ("Was sind {term}?", "Was bedeutet {bare}?", "Was versteht man unter {bare}?", "Erkläre den Begriff {bare}."),
        ("Was meint man mit {bare}?", "Kannst du mir sagen, was {bare} bedeutet?"),
    ),
    "meaning": (
        ("Was bedeutet {bare}?", "Was ist {bare}?", "Was versteht man unter {bare}?", "Erkläre den Begriff {bare}."),
        ("Was meint man mit {bare}?", "Kannst du mir sagen, wofür {bare} steht?"),
    ),
    "item": (
        (
            "Was steht in „{title}“ zu „{term}“?",
            "Was heißt „{term}“ in „{title}“?",
            "Wie beschreibt „{title}“ den Punkt „{term}“?",
            "„{title}“: Was steht unter „{term}“?",
        ),
        ("Was lese ich in „{title}“ zu „{term}“?", "Kannst du „{term}“ aus „{title}“ erklären?"),
    ),
    "topic": (
        (
            "Was steht in „{title}“ zu „{term}“?",
            "Was sagt „{title}“ über „{term}“?",
            "„{title}“: Was sollte ich über „{term}“ wissen?",
            "Erzähle mir aus „{title}“ etwas über „{term}“.",
        ),
        ("Was kann ich in „{title}“ zu „{term}“ lesen?", "Was gilt laut „{title}“ für „{term}“?"),
    ),
    "about": (
        ("Worum geht es in „{title}“?", "Was behandelt „{title}“?", "Erzähle mir von „{title}“."),
        ("Was erfahre ich in „{title}“?", "Fasse „{title}“ kurz zusammen."),
    ),
    "table": (
        (
            "Was steht bei {row} unter {column}?",
            "{row}: Was steht unter {column}?",
            "Nenne mir {column} für {row}.",
            "Welcher Eintrag steht bei {row} für {column}?",
        ),
        ("Was ist für {row} bei {column} angegeben?", "Ich möchte {column} für {row} wissen."),
    ),
    "tables": (
        (
            "Was steht bei {row} unter {column}?",
            "{row}: Was steht unter {column}?",
            "Nenne mir {column} für {row}.",
            "Welcher Eintrag steht bei {row} für {column}?",
        ),
        ("Was ist für {row} bei {column} angegeben?", "Ich möchte {column} für {row} wissen."),
    ),
    "price": (
        (
            "Was kostet {row}?",
            "Wie hoch ist der Preis für {row}?",
            "Was verlangt ihr für {row}?",
            "Nenne mir den Preis für {row}.",
        ),
        ("Wie viel kostet {row}?", "Was muss ich für {row} bezahlen?"),
    ),
    "person": (
        (
            "Wer steht bei {row} unter {column}?",
            "Wer ist {column} für {row}?",
            "Nenne mir {column} für {row}.",
            "{row}: Wer ist als {column} angegeben?",
        ),
        ("Welche Person ist für {row} als {column} genannt?", "An wen wende ich mich bei {row} ({column})?"),
    ),
    "asked": (
        ("{question}", "Ich habe eine Frage: {question}", "Bitte sag mir: {question}", "Ich wüsste gern: {question}"),
        ("Kannst du mir dabei helfen? {question}", "Das frage ich mich gerade: {question}"),
    ),
}
SHAPES = {"en": ENGLISH, "de": GERMAN}

# How a question that somebody wrote can begin otherwise: (beginning, trained wording, held-out wording).
BEGINNINGS = {
    "en": (
        ("How do I ", "How can I ", "In what way do I "),
        ("How can I ", "How do I ", "In what way can I "),
        ("How do we ", "How can we ", "In what way do we "),
        ("Can I ", "May I ", "Am I able to "),
        ("Do I need to ", "Must I ", "Am I required to "),
        ("Do I have to ", "Must I ", "Am I required to "),
        ("Should I ", "Ought I to ", "Would it be right to "),
        ("Where do I ", "Where can I ", "In which place do I "),
        ("Where can I ", "Where do I ", "In which place can I "),
        ("Who do I ", "Whom do I ", "Which person do I "),
        ("What should I do ", "What do I do ", "What am I to do "),
        ("How long ", "For how long ", "How much time "),
        ("How often ", "How many times ", "How frequently "),
        ("When do I ", "At what point do I ", "By when do I "),
        ("What are ", "Which are ", "Tell me: what are "),
    ),
    "de": (
        ("Wie kann ich ", "Auf welche Weise kann ich ", "Auf welchem Weg kann ich "),
        ("Kann ich ", "Darf ich ", "Könnte ich "),
        ("Wo kann ich ", "An welcher Stelle kann ich ", "An welchem Ort kann ich "),
        ("Was kostet ", "Wie viel kostet ", "Wie teuer ist "),
        ("Wie lange ", "Wie viel Zeit ", "Über welche Zeit "),
        ("Wie oft ", "Wie häufig ", "In welchen Abständen "),
    ),
}


def wordings(shape: str, language: str, fields: Mapping[str, str]) -> Wordings:
    """Fill the templates of a shape. Languages without templates ask a question that was asked as it stands.

    Raises KeyError for a shape that the language does not have.
    """
    if language not in SHAPES and shape == "asked":
        return Wordings(fields["question"], (), ())
    trained, held_out = ([capital(t.format_map(fields)) for t in group] for group in SHAPES[language][shape])
    if shape == "asked":
        first, second = reword(fields["question"], language)
        trained[1:1], held_out[0:0] = first, second
    return Wordings(trained[0], tuple(trained[1:]), tuple(held_out))


def reword(question: str, language: str) -> tuple[Sequence[str], Sequence[str]]:
    """Other beginnings of a question that somebody wrote: (to train on, held out); empty where none is known."""
    for beginning, trained, held_out in BEGINNINGS.get(language, ()):
        if question.startswith(beginning):
            rest = question[len(beginning) :]
            return [trained + rest], [held_out + rest]
    return [], []


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]
