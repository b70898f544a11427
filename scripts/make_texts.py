#!/usr/bin/env python3
"""Makes the texts of assets/text from the collections they are taken from.

    python3 scripts/make_texts.py BOOKS_TRAIN BOOKS_VALID TINYSTORIES OUT_FOLDER

BOOKS_TRAIN, BOOKS_VALID: UTF-8, documents separated by a NUL byte; each book begins with three paragraphs: title, author,
year. TINYSTORIES: UTF-8, stories separated by a line `<|endoftext|>`, the last one cut off.

Writes books-train.txt, books-valid.txt, tinystories.txt and tinystories-valid.txt, each with documents separated by a
NUL byte, and prints the Markdown tables of assets/TEXTS.md. Only the standard library is needed.
"""

import sys
from pathlib import Path

# Chosen for variety of time, form and voice; every author and translator died before 1950, every text appeared before 1929.
TRAIN = {
    ("The Book of Tea", "Okakura Kakuzo"),
    ("Kwaidan", "Lafcadio Hearn"),
    ("Poems: Three Series", "Emily Dickinson"),
    ("Black Beauty", "Anna Sewell"),
    ("Utopia", "Thomas More"),
    ("Rip Van Winkle", "Washington Irving"),
    ("Some Short Christmas Stories", "Charles Dickens"),
    ("The Time Machine", "H.G. Wells"),
    ("Treasure Island", "Robert Louis Stevenson"),
    ("Ghost Stories of an Antiquary", "M.R. James"),
    ("Narrative of the Life of Frederick Douglass", "Frederick Douglass"),
    ("The Princess and the Goblin", "George MacDonald"),
    ("The Autobiography of Benjamin Franklin", "Benjamin Franklin"),
    ("Northanger Abbey", "Jane Austen"),
    ("The Hound of the Baskervilles", "Arthur Conan Doyle"),
    ("Macbeth", "William Shakespeare"),
    ("The Call of the Wild", "Jack London"),
    ("First Love", "Ivan Turgenev"),
    ("Poems", "Edgar Allan Poe"),
    ("Meditations", "Marcus Aurelius"),
    ("Ozma of Oz", "L. Frank Baum"),
    ("Beowulf", "Anonymous"),
    ("Dubliners", "James Joyce"),
    ("The Importance of Being Earnest", "Oscar Wilde"),
    ("The Blue Hotel", "Stephen Crane"),
    ("Alexander's Bridge", "Willa Cather"),
    ("Much Ado About Nothing", "William Shakespeare"),
    ("Nature", "Ralph Waldo Emerson"),
    ("Monday or Tuesday", "Virginia Woolf"),
    ("The Turn of the Screw", "Henry James"),
    ("Songs of Innocence and of Experience", "William Blake"),
    ("Bartleby, the Scrivener", "Herman Melville"),
}
VALID_BYTES = 1_005_000
STORIES_BYTES = 400_000
STORIES_VALID_BYTES = 60_000


def read(path):
    return Path(path).read_bytes().decode("utf-8")


def head(book):
    """Title, author and year of a book."""
    return tuple(part.strip() for part in book.split("\n\n", 3)[:3])


def take(documents, size):
    """The first documents that fit into `size` bytes, and those that follow."""
    total = 0
    for count, document in enumerate(documents):
        total += len(document.encode()) + 1
        if total > size + 1:
            return documents[:count], documents[count:]
    return documents, []


def write(folder, name, documents):
    data = "\0".join(documents).encode()
    (folder / name).write_bytes(data)
    return f"{len(documents):,} documents, {len(data):,} bytes"


def table(books):
    print("| title | author | year |\n|---|---|---|")
    for book in books:
        print("| {} | {} | {} |".format(*head(book)))


def main():
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    train, valid = (read(path).split("\0") for path in sys.argv[1:3])
    stories = [story.strip() for story in read(sys.argv[3]).split("<|endoftext|>")][:-1]
    folder = Path(sys.argv[4])
    folder.mkdir(parents=True, exist_ok=True)

    chosen = [book for book in train if head(book)[:2] in TRAIN]
    missing = TRAIN - {head(book)[:2] for book in chosen}
    if missing:
        sys.exit(f"not in {sys.argv[1]}: {sorted(missing)}")
    print("books-train.txt:", write(folder, "books-train.txt", chosen))
    table(chosen)

    held_out, _ = take(valid, VALID_BYTES)
    print("books-valid.txt:", write(folder, "books-valid.txt", held_out))
    table(held_out)

    first, rest = take(stories, STORIES_BYTES)
    print("tinystories.txt:", write(folder, "tinystories.txt", first))
    print("tinystories-valid.txt:", write(folder, "tinystories-valid.txt", take(rest, STORIES_VALID_BYTES)[0]))


if __name__ == "__main__":
    main()
