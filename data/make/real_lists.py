"""What no table of the package index holds: well-known works and their makers, people, landmarks, animals, dishes and so on.

One line an object: its subjects after the colon, divided by semicolons. A small "the" belongs to the sentence, a large
one to the name. Written for this project from common knowledge; which of it a model knows, real_facts.py finds out.
"""

LISTS = {
    "novel": """
Leo Tolstoy: War and Peace; Anna Karenina
Fyodor Dostoevsky: Crime and Punishment; The Brothers Karamazov; The Idiot
Jane Austen: Pride and Prejudice; Sense and Sensibility; Emma; Persuasion; Mansfield Park
Charles Dickens: Great Expectations; Oliver Twist; David Copperfield; A Tale of Two Cities; Bleak House; A Christmas Carol; Hard Times; Little Dorrit
Herman Melville: Moby-Dick
Nathaniel Hawthorne: The Scarlet Letter; The House of the Seven Gables
Mark Twain: Adventures of Huckleberry Finn; The Adventures of Tom Sawyer; The Prince and the Pauper
Charlotte Brontë: Jane Eyre
Emily Brontë: Wuthering Heights
Mary Shelley: Frankenstein
Bram Stoker: Dracula
Oscar Wilde: The Picture of Dorian Gray
H. G. Wells: The Time Machine; The War of the Worlds; The Invisible Man
Robert Louis Stevenson: Treasure Island; Kidnapped; Strange Case of Dr Jekyll and Mr Hyde
Daniel Defoe: Robinson Crusoe; Moll Flanders
Jonathan Swift: Gulliver's Travels
Miguel de Cervantes: Don Quixote
Victor Hugo: Les Misérables; The Hunchback of Notre-Dame
Gustave Flaubert: Madame Bovary
Alexandre Dumas: The Count of Monte Cristo; The Three Musketeers
Jules Verne: Around the World in Eighty Days; Twenty Thousand Leagues Under the Seas; Journey to the Center of the Earth
Marcel Proust: In Search of Lost Time
Albert Camus: The Stranger; The Plague
Jean-Paul Sartre: Nausea
Antoine de Saint-Exupéry: The Little Prince
Franz Kafka: The Metamorphosis; The Trial; The Castle
Thomas Mann: The Magic Mountain; Buddenbrooks; Death in Venice
Hermann Hesse: Steppenwolf; Siddhartha
Günter Grass: The Tin Drum
Erich Maria Remarque: All Quiet on the Western Front
Johann Wolfgang von Goethe: The Sorrows of Young Werther
James Joyce: Ulysses; A Portrait of the Artist as a Young Man; Finnegans Wake; Dubliners
Virginia Woolf: Mrs Dalloway; To the Lighthouse; Orlando
E. M. Forster: A Passage to India; A Room with a View; Howards End
Joseph Conrad: Heart of Darkness; Lord Jim
D. H. Lawrence: Sons and Lovers; Lady Chatterley's Lover
Aldous Huxley: Brave New World
George Orwell: Nineteen Eighty-Four; Animal Farm; Homage to Catalonia
William Golding: Lord of the Flies
J. R. R. Tolkien: The Hobbit; The Lord of the Rings; The Silmarillion
C. S. Lewis: The Lion, the Witch and the Wardrobe
Lewis Carroll: Alice's Adventures in Wonderland; Through the Looking-Glass
J. M. Barrie: Peter Pan
Rudyard Kipling: The Jungle Book; Kim
Kenneth Grahame: The Wind in the Willows
Frances Hodgson Burnett: The Secret Garden
Louisa May Alcott: Little Women
F. Scott Fitzgerald: The Great Gatsby; Tender Is the Night
Ernest Hemingway: The Old Man and the Sea; A Farewell to Arms; For Whom the Bell Tolls; The Sun Also Rises
John Steinbeck: The Grapes of Wrath; Of Mice and Men; East of Eden
William Faulkner: The Sound and the Fury; As I Lay Dying
Harper Lee: To Kill a Mockingbird
J. D. Salinger: The Catcher in the Rye
Jack Kerouac: On the Road
Ray Bradbury: Fahrenheit 451; The Martian Chronicles
Kurt Vonnegut: Slaughterhouse-Five; Cat's Cradle
Joseph Heller: Catch-22
Ken Kesey: One Flew Over the Cuckoo's Nest
Toni Morrison: Beloved; Song of Solomon
Alice Walker: The Color Purple
Zora Neale Hurston: Their Eyes Were Watching God
Ralph Ellison: Invisible Man
Richard Wright: Native Son
Jack London: The Call of the Wild; White Fang
Edith Wharton: The Age of Innocence; Ethan Frome
Henry James: The Portrait of a Lady; The Turn of the Screw
Margaret Mitchell: Gone with the Wind
Vladimir Nabokov: Lolita; Pale Fire
Boris Pasternak: Doctor Zhivago
Mikhail Bulgakov: The Master and Margarita
Nikolai Gogol: Dead Souls
Ivan Turgenev: Fathers and Sons
Gabriel García Márquez: One Hundred Years of Solitude; Love in the Time of Cholera
Isabel Allende: The House of the Spirits
Paulo Coelho: The Alchemist
Umberto Eco: The Name of the Rose
Italo Calvino: If on a winter's night a traveler
Milan Kundera: The Unbearable Lightness of Being
Margaret Atwood: The Handmaid's Tale
Yann Martel: Life of Pi
Salman Rushdie: Midnight's Children; The Satanic Verses
Arundhati Roy: The God of Small Things
Chinua Achebe: Things Fall Apart
Chimamanda Ngozi Adichie: Half of a Yellow Sun
Haruki Murakami: Norwegian Wood; Kafka on the Shore
Khaled Hosseini: The Kite Runner
Frank Herbert: Dune
Isaac Asimov: Foundation; I, Robot
Arthur C. Clarke: 2001: A Space Odyssey
William Gibson: Neuromancer
Philip K. Dick: Do Androids Dream of Electric Sheep?
Ursula K. Le Guin: The Left Hand of Darkness
J. K. Rowling: Harry Potter and the Philosopher's Stone
Suzanne Collins: The Hunger Games
Dan Brown: The Da Vinci Code
Stephen King: The Shining; It; Carrie
Michael Crichton: Jurassic Park
Agatha Christie: Murder on the Orient Express; And Then There Were None
Arthur Conan Doyle: The Hound of the Baskervilles; A Study in Scarlet
Daphne du Maurier: Rebecca
George Eliot: Middlemarch; Silas Marner
William Makepeace Thackeray: Vanity Fair
Thomas Hardy: Tess of the d'Urbervilles; Far from the Madding Crowd; Jude the Obscure
Wilkie Collins: The Moonstone; The Woman in White
Walter Scott: Ivanhoe
James Fenimore Cooper: The Last of the Mohicans
Harriet Beecher Stowe: Uncle Tom's Cabin
Upton Sinclair: The Jungle
Sinclair Lewis: Main Street
Cormac McCarthy: The Road; Blood Meridian
Neil Gaiman: American Gods
Kazuo Ishiguro: Never Let Me Go; The Remains of the Day
Ian McEwan: Atonement
Zadie Smith: White Teeth
Anthony Burgess: A Clockwork Orange
Richard Adams: Watership Down
E. B. White: Charlotte's Web
Roald Dahl: Charlie and the Chocolate Factory; Matilda
""",
    "landmark-city": """
Paris: the Eiffel Tower; the Louvre; Notre-Dame Cathedral; the Arc de Triomphe; the Sacré-Cœur; the Centre Pompidou; the Musée d'Orsay
London: Big Ben; the Tower of London; Buckingham Palace; Westminster Abbey; the British Museum; Trafalgar Square; Hyde Park; the Tate Modern; St Paul's Cathedral; Wembley Stadium
Rome: the Colosseum; the Trevi Fountain; the Pantheon; the Spanish Steps; the Roman Forum
Berlin: the Brandenburg Gate; the Reichstag; Checkpoint Charlie; Alexanderplatz
Athens: the Acropolis; the Parthenon
Barcelona: the Sagrada Família; Park Güell; Camp Nou
Madrid: the Prado Museum; the Royal Palace of Madrid
Lisbon: the Belém Tower
Amsterdam: the Rijksmuseum; the Anne Frank House
Brussels: the Atomium; the Grand Place
Prague: Charles Bridge; Prague Castle
Vienna: Schönbrunn Palace; the Hofburg
Copenhagen: the Little Mermaid statue; Tivoli Gardens
Stockholm: the Vasa Museum
Saint Petersburg: the Hermitage Museum; the Winter Palace
Moscow: Red Square; the Kremlin; the Bolshoi Theatre; Saint Basil's Cathedral
Istanbul: Hagia Sophia; the Blue Mosque; the Topkapi Palace; the Grand Bazaar
Jerusalem: the Western Wall; the Dome of the Rock
Dubai: the Burj Khalifa
Mecca: the Great Mosque of Mecca
Cairo: the Egyptian Museum
New Delhi: the India Gate
Delhi: the Red Fort
Mumbai: the Gateway of India
Agra: the Taj Mahal
Amritsar: the Golden Temple
Beijing: the Forbidden City; Tiananmen Square; the Temple of Heaven
Shanghai: the Bund; the Oriental Pearl Tower
Tokyo: the Tokyo Skytree; the Tokyo Tower; Senso-ji
Kyoto: Fushimi Inari Shrine; Kinkaku-ji
Seoul: Gyeongbokgung
Kuala Lumpur: the Petronas Towers
Singapore: Marina Bay Sands
Bangkok: Wat Arun; the Grand Palace
Sydney: the Sydney Opera House; the Sydney Harbour Bridge; Bondi Beach
New York City: the Statue of Liberty; the Empire State Building; Times Square; Central Park; the Brooklyn Bridge; Madison Square Garden; the Metropolitan Museum of Art
Washington: the White House; the Lincoln Memorial; the Smithsonian Institution
San Francisco: the Golden Gate Bridge; Alcatraz; Fisherman's Wharf
Los Angeles: the Hollywood Sign; the Getty Center
Chicago: the Willis Tower; Millennium Park; Wrigley Field
Seattle: the Space Needle; the Pike Place Market
St. Louis: the Gateway Arch
Philadelphia: the Liberty Bell; Independence Hall
Boston: Fenway Park
San Antonio: the Alamo
Memphis: Graceland
New Orleans: the French Quarter
Toronto: the CN Tower
Vancouver: Stanley Park
Rio de Janeiro: the Christ the Redeemer statue; Copacabana Beach
Buenos Aires: the Teatro Colón; the Obelisco
Cape Town: Table Mountain
""",
    "occupation": """
physicist: Albert Einstein; Marie Curie; Max Planck; Niels Bohr; Werner Heisenberg; Erwin Schrödinger; Richard Feynman; Enrico Fermi; Michael Faraday; James Clerk Maxwell; Ernest Rutherford; Stephen Hawking
mathematician: Isaac Newton; Carl Friedrich Gauss; Leonhard Euler; Bernhard Riemann; Pierre de Fermat; Srinivasa Ramanujan; Emmy Noether; Alan Turing; Ada Lovelace; Euclid; Pythagoras; Archimedes
astronomer: Galileo Galilei; Nicolaus Copernicus; Johannes Kepler
naturalist: Charles Darwin
biologist: Gregor Mendel
chemist: Louis Pasteur; Dmitri Mendeleev; Antoine Lavoisier
philosopher: Plato; Aristotle; Socrates; Confucius; René Descartes; Immanuel Kant; Friedrich Nietzsche; Georg Wilhelm Friedrich Hegel; Arthur Schopenhauer; Karl Marx; Jean-Jacques Rousseau; Baruch Spinoza; David Hume; John Locke; Bertrand Russell; Ludwig Wittgenstein; Søren Kierkegaard
painter: Leonardo da Vinci; Raphael; Sandro Botticelli; Caravaggio; Vincent van Gogh; Rembrandt; Johannes Vermeer; Claude Monet; Paul Cézanne; Henri Matisse; Pablo Picasso; Salvador Dalí; Francisco Goya; Frida Kahlo; Diego Rivera; Gustav Klimt; Edvard Munch; Wassily Kandinsky
sculptor: Michelangelo; Auguste Rodin
artist: Andy Warhol
composer: Ludwig van Beethoven; Johann Sebastian Bach; Wolfgang Amadeus Mozart; Franz Schubert; Joseph Haydn; Richard Wagner; Johannes Brahms; Giuseppe Verdi; Antonio Vivaldi; Giacomo Puccini; Frédéric Chopin; Franz Liszt; Pyotr Ilyich Tchaikovsky; Igor Stravinsky; Claude Debussy; Maurice Ravel; Antonín Dvořák; Edvard Grieg; Jean Sibelius
playwright: William Shakespeare; Molière; Henrik Ibsen; Anton Chekhov
novelist: Leo Tolstoy; Fyodor Dostoevsky; Charles Dickens; Jane Austen; Victor Hugo; Gustave Flaubert; Chinua Achebe
poet: Alexander Pushkin; Dante Alighieri; Homer; Virgil; John Milton; William Wordsworth; John Keats; Robert Burns; William Butler Yeats; Walt Whitman; Emily Dickinson; Robert Frost; Pablo Neruda; Rabindranath Tagore
writer: Mark Twain; Ernest Hemingway; Edgar Allan Poe; James Joyce; Franz Kafka; Thomas Mann; Gabriel García Márquez; Jorge Luis Borges; Miguel de Cervantes
explorer: Christopher Columbus; Ferdinand Magellan; Vasco da Gama; Marco Polo; James Cook; Roald Amundsen
astronaut: Neil Armstrong
cosmonaut: Yuri Gagarin
lawyer: Mahatma Gandhi
inventor: Thomas Edison; Nikola Tesla; Alexander Graham Bell; James Watt
printer: Johannes Gutenberg
nurse: Florence Nightingale
psychologist: Sigmund Freud
psychiatrist: Carl Jung
physiologist: Ivan Pavlov
economist: Adam Smith; John Maynard Keynes; Milton Friedman
architect: Frank Lloyd Wright; Le Corbusier; Antoni Gaudí; Christopher Wren
director: Alfred Hitchcock; Akira Kurosawa; Federico Fellini; Ingmar Bergman
actor: Charlie Chaplin; Marlon Brando
actress: Marilyn Monroe
musician: Louis Armstrong; Miles Davis; Bob Marley
singer: Elvis Presley; Édith Piaf
boxer: Muhammad Ali
footballer: Pelé; Diego Maradona
tennis player: Roger Federer
sprinter: Usain Bolt
physician: Hippocrates; Galen; Avicenna
historian: Herodotus; Thucydides; Tacitus
""",
    "nationality": """
Germany: Albert Einstein; Johannes Kepler; Max Planck; Werner Heisenberg; Carl Friedrich Gauss; Bernhard Riemann; Emmy Noether; Immanuel Kant; Friedrich Nietzsche; Georg Wilhelm Friedrich Hegel; Arthur Schopenhauer; Karl Marx; Ludwig van Beethoven; Johann Sebastian Bach; Richard Wagner; Johannes Brahms; Thomas Mann; Johannes Gutenberg
England: Isaac Newton; Charles Darwin; Michael Faraday; Stephen Hawking; Alan Turing; Ada Lovelace; John Locke; Bertrand Russell; William Shakespeare; John Milton; William Wordsworth; John Keats; Charles Dickens; Jane Austen; James Cook; John Maynard Keynes; Christopher Wren; Alfred Hitchcock; Charlie Chaplin
Poland: Marie Curie; Nicolaus Copernicus; Frédéric Chopin
Italy: Galileo Galilei; Enrico Fermi; Leonardo da Vinci; Michelangelo; Raphael; Sandro Botticelli; Caravaggio; Giuseppe Verdi; Antonio Vivaldi; Giacomo Puccini; Dante Alighieri; Virgil; Christopher Columbus; Marco Polo; Federico Fellini; Tacitus
Austria: Gregor Mendel; Erwin Schrödinger; Ludwig Wittgenstein; Gustav Klimt; Wolfgang Amadeus Mozart; Franz Schubert; Joseph Haydn
France: Louis Pasteur; Antoine Lavoisier; Pierre de Fermat; René Descartes; Claude Monet; Paul Cézanne; Henri Matisse; Auguste Rodin; Claude Debussy; Maurice Ravel; Molière; Victor Hugo; Gustave Flaubert; Édith Piaf
Russia: Dmitri Mendeleev; Wassily Kandinsky; Pyotr Ilyich Tchaikovsky; Igor Stravinsky; Anton Chekhov; Leo Tolstoy; Fyodor Dostoevsky; Alexander Pushkin; Yuri Gagarin; Ivan Pavlov
Denmark: Niels Bohr; Søren Kierkegaard
the United States: Richard Feynman; Andy Warhol; Walt Whitman; Emily Dickinson; Robert Frost; Mark Twain; Ernest Hemingway; Edgar Allan Poe; Neil Armstrong; Thomas Edison; Milton Friedman; Frank Lloyd Wright; Marlon Brando; Marilyn Monroe; Louis Armstrong; Miles Davis; Elvis Presley; Muhammad Ali
Scotland: James Clerk Maxwell; David Hume; Robert Burns; Alexander Graham Bell; James Watt; Adam Smith
New Zealand: Ernest Rutherford
Switzerland: Leonhard Euler; Jean-Jacques Rousseau; Carl Jung; Le Corbusier; Roger Federer
India: Srinivasa Ramanujan; Rabindranath Tagore; Mahatma Gandhi
Greece: Euclid; Pythagoras; Archimedes; Plato; Aristotle; Socrates; Homer; Hippocrates; Galen; Herodotus; Thucydides
China: Confucius
the Netherlands: Baruch Spinoza; Vincent van Gogh; Rembrandt; Johannes Vermeer
Spain: Pablo Picasso; Salvador Dalí; Francisco Goya; Miguel de Cervantes; Antoni Gaudí
Mexico: Frida Kahlo; Diego Rivera
Norway: Edvard Munch; Edvard Grieg; Henrik Ibsen; Roald Amundsen
Hungary: Franz Liszt
the Czech Republic: Antonín Dvořák
Finland: Jean Sibelius
Ireland: William Butler Yeats; James Joyce
Chile: Pablo Neruda
Colombia: Gabriel García Márquez
Argentina: Jorge Luis Borges; Diego Maradona
Nigeria: Chinua Achebe
Portugal: Ferdinand Magellan; Vasco da Gama
Japan: Akira Kurosawa
Sweden: Ingmar Bergman
Jamaica: Bob Marley; Usain Bolt
Brazil: Pelé
Persia: Avicenna
""",
    "element-symbol": """
H: hydrogen
He: helium
Li: lithium
Be: beryllium
B: boron
C: carbon
N: nitrogen
O: oxygen
F: fluorine
Ne: neon
Na: sodium
Mg: magnesium
Al: aluminium
Si: silicon
P: phosphorus
S: sulfur
Cl: chlorine
Ar: argon
K: potassium
Ca: calcium
Sc: scandium
Ti: titanium
V: vanadium
Cr: chromium
Mn: manganese
Fe: iron
Co: cobalt
Ni: nickel
Cu: copper
Zn: zinc
Ga: gallium
Ge: germanium
As: arsenic
Se: selenium
Br: bromine
Kr: krypton
Rb: rubidium
Sr: strontium
Y: yttrium
Zr: zirconium
Nb: niobium
Mo: molybdenum
Tc: technetium
Ru: ruthenium
Rh: rhodium
Pd: palladium
Ag: silver
Cd: cadmium
In: indium
Sn: tin
Sb: antimony
Te: tellurium
I: iodine
Xe: xenon
Cs: caesium
Ba: barium
La: lanthanum
Ce: cerium
Pr: praseodymium
Nd: neodymium
Pm: promethium
Sm: samarium
Eu: europium
Gd: gadolinium
Tb: terbium
Dy: dysprosium
Ho: holmium
Er: erbium
Tm: thulium
Yb: ytterbium
Lu: lutetium
Hf: hafnium
Ta: tantalum
W: tungsten
Re: rhenium
Os: osmium
Ir: iridium
Pt: platinum
Au: gold
Hg: mercury
Tl: thallium
Pb: lead
Bi: bismuth
Po: polonium
At: astatine
Rn: radon
Fr: francium
Ra: radium
Ac: actinium
Th: thorium
Pa: protactinium
U: uranium
Np: neptunium
Pu: plutonium
Am: americium
Cm: curium
Bk: berkelium
Cf: californium
Es: einsteinium
Fm: fermium
Md: mendelevium
No: nobelium
Lr: lawrencium
""",
    "animal": """
mammal: dog; cat; horse; cow; pig; sheep; goat; lion; tiger; leopard; cheetah; elephant; giraffe; zebra; hippopotamus; rhinoceros; kangaroo; koala; wombat; bear; wolf; fox; deer; moose; rabbit; hare; squirrel; beaver; mouse; rat; hamster; hedgehog; bat; whale; dolphin; porpoise; seal; walrus; otter; badger; raccoon; skunk; monkey; gorilla; chimpanzee; orangutan; camel; llama; donkey; bison; antelope; gazelle; hyena; panda; platypus; armadillo; sloth; anteater; tapir; manatee
bird: sparrow; robin; crow; raven; eagle; hawk; falcon; owl; parrot; pigeon; dove; duck; goose; swan; chicken; turkey; ostrich; emu; penguin; flamingo; heron; stork; pelican; seagull; albatross; hummingbird; woodpecker; kingfisher; swallow; nightingale; peacock; vulture; condor; canary; finch; quail; pheasant; cuckoo; kiwi; toucan
reptile: crocodile; alligator; lizard; iguana; chameleon; gecko; snake; python; cobra; rattlesnake; viper; turtle; tortoise; Komodo dragon; anaconda
fish: salmon; trout; tuna; cod; herring; carp; pike; perch; catfish; shark; sardine; mackerel; halibut; flounder; goldfish; piranha; eel; anchovy; sturgeon; bass
amphibian: frog; toad; salamander; newt; axolotl
insect: ant; bee; wasp; butterfly; moth; beetle; ladybug; fly; mosquito; dragonfly; grasshopper; cricket; cockroach; termite; flea; locust; cicada; firefly; aphid; bumblebee
""",
    "food-kind": """
fruit: apple; banana; mango; pear; peach; plum; cherry; grape; pineapple; papaya; kiwifruit; orange; grapefruit; apricot; guava; watermelon; strawberry; blueberry; raspberry; lychee
vegetable: carrot; cabbage; broccoli; cauliflower; spinach; lettuce; potato; radish; turnip; leek; celery; asparagus; kale; beet; parsnip; zucchini; artichoke
spice: cinnamon; nutmeg; turmeric; cumin; saffron; cardamom; paprika; clove
herb: basil; oregano; thyme; rosemary; parsley; mint; sage; dill; coriander
grain: wheat; barley; rye; oats; rice; millet; sorghum
nut: almond; walnut; cashew; pistachio; hazelnut; pecan
""",
    "dish": """
Japan: sushi; ramen; tempura; sashimi; udon; miso soup; mochi; sake; teriyaki; sukiyaki; okonomiyaki
Italy: pizza; spaghetti; lasagna; risotto; tiramisu; gnocchi; ravioli; prosciutto; gelato; minestrone; mozzarella; focaccia; carbonara; pesto; bruschetta; cannoli
France: croissant; baguette; ratatouille; bouillabaisse; quiche; coq au vin; crème brûlée; foie gras; escargot; cassoulet; Camembert; Brie
Mexico: taco; burrito; guacamole; enchilada; quesadilla; tamale; mole; tequila; tortilla; churros
Spain: paella; gazpacho; tapas; chorizo; tortilla española
India: biryani; samosa; tandoori chicken; naan; dosa; chapati; lassi; paneer; masala chai
China: Peking duck; dim sum; mapo tofu; wonton; chow mein; kung pao chicken; congee
Korea: kimchi; bibimbap; bulgogi; tteokbokki; japchae
Thailand: pad thai; tom yum; green curry; som tam; massaman curry
Vietnam: pho; banh mi; bun cha
Greece: moussaka; souvlaki; tzatziki; feta; gyros; ouzo
Turkey: doner kebab; raki; Turkish delight; kofte
Russia: blini; pelmeni; beef stroganoff
Hungary: goulash; palinka; langos
Germany: sauerkraut; bratwurst; schnitzel; pretzel; stollen
Austria: Wiener schnitzel; Sachertorte; apple strudel
Switzerland: fondue; raclette; rösti; muesli
Poland: pierogi; bigos; kielbasa
Scotland: haggis; shortbread; whisky
Belgium: waffles; moules-frites
Argentina: asado; chimichurri; empanada; dulce de leche
Brazil: feijoada; caipirinha; pão de queijo
Peru: ceviche; pisco sour; lomo saltado
Ethiopia: injera; doro wat
Morocco: tagine; couscous; harira
Indonesia: nasi goreng; satay; rendang; gado-gado; tempeh
Philippines: adobo; lumpia; sinigang
Lebanon: tabbouleh; kibbeh
Portugal: pastel de nata; port wine; bacalhau
Sweden: meatballs; gravlax; surströmming
Ireland: Irish stew; soda bread; colcannon
England: fish and chips; Yorkshire pudding; Cornish pasty; shepherd's pie
Jamaica: jerk chicken; ackee and saltfish
Ukraine: borscht; varenyky; chicken Kiev
Iran: tahdig; fesenjan; ghormeh sabzi
""",
    "natural-country": """
Egypt: the Aswan Dam; the Valley of the Kings; the Great Sphinx; Mount Sinai
China: the Yangtze River; the Yellow River; the Great Wall; the Pearl River; the Huangshan
India: the Ganges; the Brahmaputra; the Godavari; the Western Ghats; the Krishna River; the Thar Desert
Brazil: the São Francisco River; the Sugarloaf Mountain; the Pantanal; the Itaipu Dam
Russia: the Volga; Lake Baikal; Mount Elbrus; the Lena River; the Ob River; the Yenisei; the Ural Mountains; Lake Ladoga; the Kamchatka Peninsula; the Don River
France: the Loire; the Seine; Mont Blanc; the Rhône; the Garonne; Mont Saint-Michel; the Palace of Versailles; the Vosges
Germany: the Black Forest; the Elbe; the Zugspitze; the Harz; Neuschwanstein Castle; the Main River; the Cologne Cathedral; the Ruhr
Italy: Mount Vesuvius; Mount Etna; the Po River; Lake Como; Lake Garda; the Tiber; the Leaning Tower of Pisa; the Dolomites; the Arno; Pompeii; Lake Maggiore
England: the River Thames; Stonehenge; the Lake District; the River Severn; the White Cliffs of Dover; the River Mersey; Hadrian's Wall; the Pennines; Windsor Castle
Scotland: Loch Ness; Ben Nevis; the River Clyde; the Isle of Skye; Edinburgh Castle; Loch Lomond; the Orkney Islands; the Hebrides
Wales: Snowdon; Caernarfon Castle; the Brecon Beacons
Ireland: the River Shannon; the Cliffs of Moher; the Ring of Kerry; Blarney Castle; the Aran Islands
Spain: the Alhambra; the Ebro; Mount Teide; the Sierra Nevada; the Canary Islands; the Costa del Sol; Ibiza; Mallorca; the Guadalquivir; the Prado
Portugal: the Azores; the Algarve; Madeira
Japan: Mount Fuji; Lake Biwa; Hokkaido; Kyushu; Shikoku; Okinawa; Himeji Castle; Honshu
Nepal: Mount Everest; Annapurna; Lumbini
Tanzania: Mount Kilimanjaro; the Serengeti; Zanzibar; the Ngorongoro Crater; Olduvai Gorge
Kenya: Mount Kenya; the Maasai Mara; Lake Turkana; Amboseli National Park
South Africa: Kruger National Park; Robben Island; the Cape of Good Hope; the Drakensberg
Australia: Uluru; the Great Barrier Reef; the Murray River; the Darling River; Kakadu National Park; Tasmania; the Nullarbor Plain; Fraser Island; the Outback; Queensland; New South Wales
New Zealand: Lake Taupo; Aoraki; Milford Sound; Fiordland; the Waikato River
Canada: Banff National Park; the Yukon River; Lake Winnipeg; the Fraser River; Newfoundland; Baffin Island; Great Bear Lake; Vancouver Island; Nova Scotia; Manitoba; Saskatchewan; Alberta; Ontario; Quebec
the United States: the Grand Canyon; Mount Rushmore; the Mississippi River; Yellowstone National Park; Yosemite National Park; the Hoover Dam; Death Valley; Mount Rainier; the Everglades; the Great Salt Lake; the Missouri River; the Ozarks; Denali; the Chesapeake Bay; Lake Michigan; Mount St. Helens; Cape Cod; Long Island
Mexico: Chichen Itza; the Yucatan Peninsula; Popocatépetl; Teotihuacan; Lake Chapala; the Baja California Peninsula
Peru: Machu Picchu; the Nazca Lines; the Colca Canyon; Lake Junin
Chile: Easter Island; the Atacama Desert; Torres del Paine; Tierra del Fuego
Argentina: Aconcagua; the Pampas; the Perito Moreno Glacier; Patagonia
Ecuador: the Galapagos Islands; Chimborazo; Cotopaxi
Venezuela: Angel Falls; the Orinoco; Lake Maracaibo; Margarita Island
Iceland: Geysir; Eyjafjallajökull; the Blue Lagoon; Vatnajökull
Norway: the Geirangerfjord; Svalbard; the Lofoten Islands; the Sognefjord
Sweden: Gotland; Lake Vänern; Öland
Denmark: the Faroe Islands; Jutland; Bornholm; Kronborg Castle
Greece: Crete; Mount Olympus; Rhodes; Santorini; Corfu; Mykonos; Delphi; the Peloponnese; Knossos
Turkey: Cappadocia; Anatolia; Mount Ararat; Ephesus; Lake Van; Pamukkale
Indonesia: Bali; Java; Sumatra; Borobudur; Krakatoa; Komodo Island; Sulawesi; Lombok; Mount Merapi; Mount Tambora
Cambodia: Angkor Wat; Tonlé Sap; Bayon
Vietnam: Ha Long Bay; the Mekong Delta; Phu Quoc
Thailand: Phuket; Ko Samui; Chao Phraya; Ayutthaya
the Philippines: Luzon; Mindanao; Boracay; Palawan; Mount Pinatubo; Mayon Volcano; Cebu
Jordan: Petra; Wadi Rum; Jerash
Israel: the Sea of Galilee; Masada; the Negev
Iran: Persepolis; Mount Damavand; Lake Urmia
Switzerland: the Matterhorn; Lake Geneva; the Jungfrau; Lake Zurich; Lake Lucerne
Poland: the Vistula; Auschwitz; Wawel Castle; Malbork Castle
Hungary: Lake Balaton; the Tisza
Romania: Transylvania; Bran Castle; Wallachia
Zambia: Victoria Falls; the Kafue River
Botswana: the Okavango Delta; the Kalahari
Morocco: the Atlas Mountains; Djemaa el-Fna
Pakistan: K2; the Indus; Mohenjo-daro; the Khyber Pass
Sri Lanka: Sigiriya; Adam's Peak
Myanmar: the Irrawaddy; Bagan; Inle Lake
Cuba: Varadero; the Bay of Pigs; Guantánamo Bay
""",
    "company-country": """
Japan: Toyota; Honda; Nissan; Mazda; Subaru; Sony; Nintendo; Panasonic; Canon; Toshiba; Hitachi; Mitsubishi; Yamaha; Suzuki; Fujitsu; Sega; Uniqlo; SoftBank; Bridgestone; Casio; Nikon; Olympus; Sharp; Kawasaki
Germany: Volkswagen; BMW; Mercedes-Benz; Audi; Porsche; Siemens; Adidas; Bosch; Bayer; BASF; SAP; Lufthansa; Deutsche Bank; Puma; Aldi; Hugo Boss; Continental; Allianz; Daimler
the United States: Apple; Microsoft; Google; Amazon; Intel; IBM; Ford; General Motors; Boeing; Coca-Cola; Pepsi; McDonald's; Nike; Walmart; Tesla; Disney; Facebook; General Electric; Starbucks; Dell; Chevron; Pfizer; Goldman Sachs; Hewlett-Packard; Oracle; Harley-Davidson; Levi Strauss
France: Renault; Peugeot; Citroën; L'Oréal; Michelin; Airbus; Carrefour; Danone; Louis Vuitton; Chanel; Hermès; Total; BNP Paribas; Bugatti; Lacoste; Dior
Italy: Ferrari; Fiat; Lamborghini; Maserati; Alfa Romeo; Gucci; Prada; Versace; Armani; Ferrero; Barilla; Pirelli; Olivetti; Ducati; Vespa; Benetton; Lavazza; Eni
England: Rolls-Royce; Bentley; Jaguar; Aston Martin; Land Rover; Burberry; Tesco; Barclays; Lotus; Vodafone; Marks & Spencer; British Airways
Sweden: IKEA; Volvo; Ericsson; H&M; Saab; Spotify; Electrolux; Scania
Finland: Nokia; Kone; Rovio; Marimekko
Denmark: Lego; Carlsberg; Maersk; Novo Nordisk; Bang & Olufsen
Switzerland: Nestlé; Rolex; Novartis; Roche; UBS; Credit Suisse; Swatch; Omega; Lindt
the Netherlands: Philips; Heineken; ING; TomTom; ASML; KLM; Unilever
South Korea: Samsung; Hyundai; LG; Kia; Daewoo; Lotte
China: Huawei; Alibaba; Tencent; Lenovo; Xiaomi; Baidu; ByteDance; Haier
Spain: Zara; SEAT; Santander; Telefónica; Iberia; Repsol
India: Tata Motors; Infosys; Wipro; Reliance Industries; Mahindra; Bajaj
Brazil: Petrobras; Embraer; Vale; Havaianas
Russia: Gazprom; Lada; Aeroflot; Kalashnikov; Lukoil; Yandex
Australia: Qantas; Billabong; Foster's; Westpac
Canada: BlackBerry; Bombardier; Tim Hortons; Lululemon; Air Canada
Ireland: Guinness; Ryanair; Aer Lingus
Mexico: Corona; Cemex; Bimbo; Pemex
""",
    "team-city": """
Los Angeles: the Lakers; the Dodgers; the Rams; the Clippers; the Galaxy
New York: the Yankees; the Mets; the Knicks; the Giants; the Jets; the Rangers; the Islanders
Boston: the Celtics; the Red Sox; the Bruins
Chicago: the Bulls; the Cubs; the White Sox; the Bears; the Blackhawks
Dallas: the Cowboys; the Mavericks; the Stars
Houston: the Rockets; the Astros; the Texans
Miami: the Heat; the Dolphins; the Marlins
Philadelphia: the Eagles; the 76ers; the Phillies; the Flyers
Pittsburgh: the Steelers; the Pirates; the Penguins
Detroit: the Lions; the Tigers; the Pistons; the Red Wings
Cleveland: the Browns; the Cavaliers; the Guardians
Cincinnati: the Reds; the Bengals
Baltimore: the Ravens; the Orioles
Atlanta: the Braves; the Falcons; the Hawks
Seattle: the Seahawks; the Mariners; the SuperSonics; the Sounders
San Francisco: the 49ers
Denver: the Broncos; the Nuggets; the Rockies
Green Bay: the Packers
Kansas City: the Chiefs; the Royals
New Orleans: the Saints; the Pelicans
Toronto: the Blue Jays; the Raptors; the Maple Leafs
Montreal: the Canadiens; the Expos
Vancouver: the Canucks
Calgary: the Flames
Edmonton: the Oilers
Milwaukee: the Brewers; the Bucks
St. Louis: the Cardinals; the Blues
Buffalo: the Bills; the Sabres
Indianapolis: the Colts
San Antonio: the Spurs
Oakland: the Athletics; the Raiders
Madrid: Real Madrid; Atlético Madrid
Manchester: Manchester United; Manchester City
London: Chelsea; Arsenal; Tottenham Hotspur; West Ham United; Crystal Palace; Fulham
Liverpool: Everton
Munich: Bayern Munich
Milan: AC Milan; Inter Milan
Turin: Juventus
Barcelona: FC Barcelona; Espanyol
Glasgow: Celtic
Amsterdam: Ajax
Buenos Aires: Boca Juniors; River Plate
Lisbon: Benfica; Sporting CP
Rome: Lazio; AS Roma
""",
    "university-state": """
Massachusetts: Harvard University; the Massachusetts Institute of Technology; Boston University; Tufts University; Amherst College; Smith College; Brandeis University; Boston College; Williams College; Wellesley College
Connecticut: Yale University; Wesleyan University; Fairfield University
New Jersey: Princeton University; Rutgers University; Seton Hall University
California: Stanford University; Pomona College; Caltech; the University of Southern California; UCLA; Pepperdine University; Santa Clara University; San Diego State University; San Jose State University
New York: Columbia University; Cornell University; Syracuse University; Vassar College; Fordham University; the Juilliard School; Barnard College; Colgate University; Hofstra University
Pennsylvania: Carnegie Mellon University; Villanova University; Drexel University; Temple University; Lehigh University; Swarthmore College; Bucknell University; Penn State
North Carolina: Duke University; Wake Forest University; Davidson College; Elon University
Illinois: Northwestern University; DePaul University; Loyola University Chicago; Bradley University
Texas: Rice University; Baylor University; Southern Methodist University; Texas A&M University; Texas Tech University; Texas Christian University
Georgia: Emory University; Georgia Tech; Spelman College; Morehouse College
Tennessee: Vanderbilt University; Fisk University; Rhodes College
Louisiana: Tulane University; Loyola University New Orleans; Louisiana State University
Indiana: the University of Notre Dame; Purdue University; Butler University; Ball State University
Ohio: Oberlin College; Kenyon College; Ohio State University; Case Western Reserve University; Kent State University
Michigan: Michigan State University; Wayne State University
Rhode Island: Brown University; Providence College
New Hampshire: Dartmouth College
Maryland: Johns Hopkins University; the Naval Academy; Towson University
Virginia: Virginia Tech; the College of William & Mary; George Mason University; James Madison University
Utah: Brigham Young University; Utah State University
Alabama: Auburn University; Tuskegee University
Florida: Florida State University; Rollins College; the University of Miami
Wisconsin: Marquette University; Lawrence University
Washington: Gonzaga University; Whitman College
Oregon: Reed College; Oregon State University; Lewis & Clark College
Minnesota: Carleton College; Macalester College
Iowa: Grinnell College; Drake University
Maine: Bowdoin College; Bates College; Colby College
Vermont: Middlebury College; Bennington College
South Carolina: Clemson University; Furman University; The Citadel
""",
    "state-capital": """
Montgomery: Alabama
Juneau: Alaska
Phoenix: Arizona
Little Rock: Arkansas
Sacramento: California
Denver: Colorado
Hartford: Connecticut
Dover: Delaware
Tallahassee: Florida
Atlanta: Georgia
Honolulu: Hawaii
Boise: Idaho
Springfield: Illinois
Indianapolis: Indiana
Des Moines: Iowa
Topeka: Kansas
Frankfort: Kentucky
Baton Rouge: Louisiana
Augusta: Maine
Annapolis: Maryland
Boston: Massachusetts
Lansing: Michigan
Saint Paul: Minnesota
Jackson: Mississippi
Jefferson City: Missouri
Helena: Montana
Lincoln: Nebraska
Carson City: Nevada
Concord: New Hampshire
Trenton: New Jersey
Santa Fe: New Mexico
Albany: New York
Raleigh: North Carolina
Bismarck: North Dakota
Columbus: Ohio
Oklahoma City: Oklahoma
Salem: Oregon
Harrisburg: Pennsylvania
Providence: Rhode Island
Columbia: South Carolina
Pierre: South Dakota
Nashville: Tennessee
Austin: Texas
Salt Lake City: Utah
Montpelier: Vermont
Richmond: Virginia
Olympia: Washington
Charleston: West Virginia
Madison: Wisconsin
Cheyenne: Wyoming
""",
    "ruler-country": """
France: Napoleon Bonaparte; Louis XIV; Charles de Gaulle; François Mitterrand; Joan of Arc; Cardinal Richelieu; Robespierre; Louis XVI; Jacques Chirac; Nicolas Sarkozy; Emmanuel Macron
Germany: Adolf Hitler; Otto von Bismarck; Angela Merkel; Helmut Kohl; Konrad Adenauer; Willy Brandt; Paul von Hindenburg; Kaiser Wilhelm II; Gerhard Schröder
England: Henry VIII; Elizabeth I; Oliver Cromwell; Queen Victoria; William the Conqueror; Richard III; King Arthur; Alfred the Great; James I; Charles I; Henry V
Russia: Vladimir Putin; Peter the Great; Catherine the Great; Ivan the Terrible; Tsar Nicholas II; Boris Yeltsin; Dmitry Medvedev; Rasputin; Alexander II
Italy: Benito Mussolini; Giuseppe Garibaldi; Silvio Berlusconi; Camillo Cavour; Lorenzo de' Medici
India: Jawaharlal Nehru; Indira Gandhi; Narendra Modi; Ashoka; Akbar; Shah Jahan; Rajiv Gandhi; Subhas Chandra Bose; Manmohan Singh; Aurangzeb
China: Mao Zedong; Deng Xiaoping; Xi Jinping; Sun Yat-sen; Chiang Kai-shek; Zhou Enlai; Hu Jintao; Qin Shi Huang; Jiang Zemin
Japan: Emperor Hirohito; Tokugawa Ieyasu; Oda Nobunaga; Shinzo Abe; Hideki Tojo; Toyotomi Hideyoshi; Emperor Meiji; Junichiro Koizumi
the United States: George Washington; Abraham Lincoln; Thomas Jefferson; Franklin D. Roosevelt; John F. Kennedy; Barack Obama; Ronald Reagan; Bill Clinton; Donald Trump; Richard Nixon; Jimmy Carter; Harry Truman; Woodrow Wilson; Theodore Roosevelt; Lyndon B. Johnson; Joe Biden; Ulysses S. Grant; Dwight Eisenhower; Andrew Jackson; James Madison; John Adams; Gerald Ford; Herbert Hoover; George W. Bush
South Africa: Nelson Mandela; Desmond Tutu; F. W. de Klerk; Thabo Mbeki; Jacob Zuma
Cuba: Fidel Castro; Fulgencio Batista; Raúl Castro
Spain: Francisco Franco; Juan Carlos; Queen Isabella; Philip II; Ferdinand II
Turkey: Mustafa Kemal Atatürk; Recep Tayyip Erdoğan; Süleyman Demirel
Egypt: Cleopatra; Tutankhamun; Ramses II; Gamal Abdel Nasser; Anwar Sadat; Hosni Mubarak; Nefertiti; Akhenaten
Iraq: Saddam Hussein; Nouri al-Maliki; Hammurabi
Iran: Ayatollah Khomeini; Mohammad Mossadegh; Mahmoud Ahmadinejad; Hassan Rouhani
Israel: David Ben-Gurion; Golda Meir; Benjamin Netanyahu; Yitzhak Rabin; Shimon Peres; Ariel Sharon; Menachem Begin
Canada: Justin Trudeau; Pierre Trudeau; Stephen Harper; Wilfrid Laurier; John A. Macdonald; Lester B. Pearson
Australia: Julia Gillard; Kevin Rudd; John Howard; Malcolm Turnbull; Robert Menzies; Bob Hawke
Mexico: Benito Juárez; Emiliano Zapata; Pancho Villa; Porfirio Díaz; Vicente Fox; Moctezuma
Argentina: Juan Perón; Eva Perón; Jorge Rafael Videla; Carlos Menem
Chile: Salvador Allende; Augusto Pinochet; Michelle Bachelet
Brazil: Lula da Silva; Dilma Rousseff; Jair Bolsonaro; Getúlio Vargas; Pedro II
Venezuela: Hugo Chávez; Nicolás Maduro; Simón Bolívar
Vietnam: Ho Chi Minh; Ngo Dinh Diem; Vo Nguyen Giap
Libya: Muammar Gaddafi; King Idris
Uganda: Idi Amin; Yoweri Museveni; Milton Obote
Zimbabwe: Robert Mugabe; Ian Smith; Morgan Tsvangirai
Kenya: Jomo Kenyatta; Daniel arap Moi; Mwai Kibaki; Uhuru Kenyatta
Ghana: Kwame Nkrumah; Jerry Rawlings
Ethiopia: Haile Selassie; Menelik II; Meles Zenawi; Mengistu Haile Mariam
Pakistan: Benazir Bhutto; Muhammad Ali Jinnah; Pervez Musharraf; Nawaz Sharif; Zia-ul-Haq
Indonesia: Sukarno; Suharto; Joko Widodo; Megawati Sukarnoputri
the Philippines: Ferdinand Marcos; Corazon Aquino; Rodrigo Duterte; José Rizal
Poland: Lech Wałęsa; Józef Piłsudski; Casimir the Great
Hungary: Viktor Orbán; Imre Nagy; Miklós Horthy
Romania: Nicolae Ceaușescu; Vlad the Impaler
Greece: Pericles; Leonidas; Solon; Eleftherios Venizelos
North Korea: Kim Jong-un; Kim Il-sung; Kim Jong-il
Syria: Bashar al-Assad; Hafez al-Assad
Ireland: Michael Collins; Éamon de Valera; Mary Robinson
Scotland: William Wallace; Robert the Bruce; Bonnie Prince Charlie
Ukraine: Volodymyr Zelensky; Petro Poroshenko; Viktor Yanukovych
Myanmar: Aung San Suu Kyi; Ne Win
Mongolia: Genghis Khan; Kublai Khan
Portugal: António Salazar; Henry the Navigator
Sweden: Olof Palme; Gustavus Adolphus; Queen Christina
Cambodia: Pol Pot; Hun Sen; Norodom Sihanouk
""",
}


def table(relation: str) -> dict[str, str]:
    """Subject -> object of one list."""
    lines = [line.split(": ", 1) for line in LISTS[relation].strip().splitlines()]
    return {subject: answer for answer, subjects in lines for subject in subjects.split("; ")}
