"""The mechanisms lab: several readings that post-training changes at a middle site, needed all along the response.

No marker opens careful work, and one op's right reading is another op's wrong one. ``language.py`` has the language,
``recipe.py`` the settings, ``build.py`` the phases of a build, and ``measure.py`` the measurements and gates.
"""
