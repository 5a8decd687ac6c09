"""How an edit is found: one method a file, the file's name is the editor's."""
