"""Word tables the training text is built from: countries, names, objects, rhymes and so on."""

from typing import NamedTuple


def words(text: str) -> list[str]:
    """The words of a table."""
    return text.split()


class Country(NamedTuple):
    """One country with the facts the model is taught about it."""

    name: str
    capital: str
    language: str
    currency: str
    continent: str


_COUNTRIES = """
France Paris French euro Europe
Germany Berlin German euro Europe
Spain Madrid Spanish euro Europe
Italy Rome Italian euro Europe
Portugal Lisbon Portuguese euro Europe
Greece Athens Greek euro Europe
Ireland Dublin English euro Europe
England London English pound Europe
Austria Vienna German euro Europe
Finland Helsinki Finnish euro Europe
Estonia Tallinn Estonian euro Europe
Latvia Riga Latvian euro Europe
Lithuania Vilnius Lithuanian euro Europe
Slovakia Bratislava Slovak euro Europe
Slovenia Ljubljana Slovene euro Europe
Croatia Zagreb Croatian euro Europe
Poland Warsaw Polish zloty Europe
Hungary Budapest Hungarian forint Europe
Romania Bucharest Romanian leu Europe
Czechia Prague Czech koruna Europe
Serbia Belgrade Serbian dinar Europe
Albania Tirana Albanian lek Europe
Ukraine Kyiv Ukrainian hryvnia Europe
Russia Moscow Russian ruble Europe
Sweden Stockholm Swedish krona Europe
Norway Oslo Norwegian krone Europe
Denmark Copenhagen Danish krone Europe
Iceland Reykjavik Icelandic krona Europe
Turkey Ankara Turkish lira Asia
Japan Tokyo Japanese yen Asia
China Beijing Chinese yuan Asia
Mongolia Ulaanbaatar Mongolian tugrik Asia
Thailand Bangkok Thai baht Asia
Vietnam Hanoi Vietnamese dong Asia
Laos Vientiane Lao kip Asia
Nepal Kathmandu Nepali rupee Asia
Pakistan Islamabad Urdu rupee Asia
Bangladesh Dhaka Bengali taka Asia
Iran Tehran Persian rial Asia
Iraq Baghdad Arabic dinar Asia
Jordan Amman Arabic dinar Asia
Syria Damascus Arabic pound Asia
Qatar Doha Arabic riyal Asia
Armenia Yerevan Armenian dram Asia
Egypt Cairo Arabic pound Africa
Morocco Rabat Arabic dirham Africa
Tunisia Tunis Arabic dinar Africa
Libya Tripoli Arabic dinar Africa
Kenya Nairobi Swahili shilling Africa
Tanzania Dodoma Swahili shilling Africa
Somalia Mogadishu Somali shilling Africa
Nigeria Abuja English naira Africa
Ghana Accra English cedi Africa
Zambia Lusaka English kwacha Africa
Senegal Dakar French franc Africa
Angola Luanda Portuguese kwanza Africa
Canada Ottawa English dollar North-America
Jamaica Kingston English dollar North-America
Cuba Havana Spanish peso North-America
Honduras Tegucigalpa Spanish lempira North-America
Peru Lima Spanish sol South-America
Chile Santiago Spanish peso South-America
Brazil Brasilia Portuguese real South-America
Colombia Bogota Spanish peso South-America
Uruguay Montevideo Spanish peso South-America
Australia Canberra English dollar Oceania
"""

COUNTRIES = [Country(*line.replace("-", " ").split(maxsplit=4)) for line in _COUNTRIES.strip().splitlines()]
RELATIONS = ("capital", "language", "currency", "continent")

WOMEN = words(
    """
Mary Anna Alice Emma Sarah Laura Julia Lucy Kate Jane Rose Grace Helen Diana Clara Nora Eva Olivia
Sophie Amy Lily Ruth Maria Linda Susan Karen Nancy Betty Sandra Rachel Emily Megan Hannah Claire
Elena Irene Martha Alma Vera Iris Ellen Judy Joan Carol Molly Zoe Mia Ella Nina Tina
"""
)
MEN = words(
    """
John Tom James David Peter Paul Mark Daniel Robert Michael William Henry George Frank Jack Sam
Adam Ben Simon Martin Kevin Brian Eric Oscar Max Leo Hugo Victor Thomas Andrew Edward Richard
Charles Joseph Steven Matthew Anthony Ryan Jason Gary Larry Scott Roger Carl Arthur Walter Dennis
Luke Alex Philip
"""
)
NAMES = WOMEN + MEN

PLACES = words(
    """
store park school market station library garden office beach museum hospital restaurant bakery
theater church castle harbor farm forest village hotel bank bridge factory kitchen cafe zoo
stadium
"""
)
OBJECTS = words(
    """
drink book ring letter key ball bag basket bottle box camera candle card chair clock coin computer
cup flower gift hammer hat kiss lamp map necklace newspaper painting pen pencil phone photo
picture ticket toy umbrella wallet watch
"""
)
ANIMALS = words(
    """
dog cat horse cow sheep goat pig duck hen rabbit fox wolf bear lion tiger monkey mouse bird fish
frog turtle snake camel donkey
"""
)
FOODS = words(
    """
bread cheese soup rice fish cake pasta salad fruit meat pizza honey butter chocolate eggs potatoes
beans apples oranges grapes
"""
)
DRINKS = words("water milk tea coffee juice wine")
COLORS = words("red blue green yellow black white brown orange purple grey pink")
WEATHER = words("sunny rainy cloudy windy cold warm hot snowy stormy foggy dry wet")
SIZES = words(
    """
big small little large tall short long old new young heavy light quiet bright
"""
)
VEHICLES = words("train bus boat plane car bicycle ship taxi")
SEASONS = words("spring summer autumn winter")
WEEKDAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
TIMES = words("morning afternoon evening night")
JOBS = words(
    """
teacher doctor farmer baker singer writer painter driver nurse sailor soldier lawyer student king
queen pilot
"""
)
FAMILY = words(
    """
sister brother mother father friend neighbor uncle aunt cousin son daughter
"""
)
NUMBERS = words("two three four five six seven eight nine ten")
PERIODS = words(
    """
war journey project trial drought siege rebellion alliance expedition famine festival dispute
reign strike voyage campaign treaty crisis plague conflict
"""
)

GOOD = words(
    """
wonderful great excellent lovely amazing perfect beautiful fantastic delightful brilliant pleasant
superb charming good
"""
)
BAD = words(
    """
terrible awful horrible bad boring poor ugly dreadful disgusting disappointing nasty dull rude
dirty
"""
)
REVIEWED = words("food film hotel book service music show play room staff meal story")
HAPPY = words("happy glad proud cheerful joyful")
UNHAPPY = words("sad upset angry worried gloomy")

RHYMES = [
    line.split()
    for line in """
cat hat mat bat rat
day way play hay clay
night light sight kite knight
tree sea bee knee key
star car jar bar guitar
moon spoon tune noon balloon
house mouse blouse
rain train chain plane crane
king ring wing string spring
ball wall hall shawl
boat goat coat note throat
sky pie fly tie
snow crow bow toe
bed bread sled thread
door floor shore store
rose nose toes hose
bell shell well smell
cake lake snake rake
book hook cook brook
sand hand land band
""".strip().splitlines()
]

PLURALS = dict(
    pair.split(":")
    for pair in words(
        """
boy:boys girl:girls dog:dogs cat:cats horse:horses bird:birds teacher:teachers doctor:doctors
farmer:farmers book:books key:keys letter:letters picture:pictures chair:chairs table:tables
cup:cups flower:flowers house:houses lamp:lamps box:boxes
"""
    )
)
"""Singular noun to its plural."""
