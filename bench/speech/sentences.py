"""What the recordings say: sentences of our own about calls, meetings and media, one word to some thirty.

Numbers are in words, and words of two spellings are left out, so that an error is one of hearing.
"""

from __future__ import annotations

SENTENCES = tuple(
    """
Hello.
Yes.
No, thank you.
Goodbye.
Thanks.
Exactly.
Speaking.
Tomorrow.
One moment.
Not yet.
Good morning.
That is correct.
Please hold the line.
Who is calling?
I agree.
Absolutely not.
Of course.
See you on Monday.
Could you repeat that?
Take your time.
It was a pleasure.
Let me check.
How can I help you today?
Your call is important to us.
I would like to speak to the manager.
Can you hear me now?
The line is very bad, please call me back.
My name is Laura Bennett and I am calling about my order.
What is the number on the back of the card?
The order number is four seven one nine.
The parcel was delivered to the wrong address.
I have been waiting for twenty minutes.
The technician will arrive between nine and eleven.
We sent you a new password this morning.
Please read the last four digits to me.
Would you like to pay now or later?
There is a small charge of twelve dollars.
I will transfer you to the billing department.
Our office is closed on public holidays.
The invoice was paid on the third of March.
You can cancel the contract at the end of the month.
The engine makes a strange noise when it is cold.
I do not remember my customer number.
Could you spell your family name for me?
We will send somebody before the weekend.
The refund should be in your account within five days.
Please do not hang up, the next free agent will talk to you.
Peter Miller asked me to call you back about the insurance.
The doctor can see you on Thursday at half past two.
Is there anything else that I can do for you?
I moved to another city in October and my old address is still on every letter that you send me.
The first technician came on Tuesday, looked at the box, and said that a part was missing.
If the light on the front is red, switch the machine off, wait for ten seconds, and switch it on again.
I was told that the delivery would be free, and now I see a charge of eighteen dollars on my bill.
Before we begin I need to ask you a few questions, and this conversation may be recorded.
Let us start.
Any questions?
Next point, please.
Everybody is here now.
Can you share your screen?
You are still on mute.
I would like to come back to the budget.
Who takes the notes today?
The minutes of the last meeting were approved.
We are behind the plan by two weeks.
Martin will prepare the slides for the customer.
The new office opens in September.
Sales went up by seven percent in the second quarter.
We lost three large customers in the spring.
I think that we should wait for the results.
Does anybody disagree with this proposal?
The test group was too small to prove anything.
Let us decide this before the end of the week.
Helen, what do the numbers say?
The budget for training was cut by one third.
We need two more people in the support team.
Nobody has tested the backup since last winter.
The supplier raised the price of paper again.
I will write a summary and send it to everyone.
The meeting room on the fourth floor is free.
Our main goal for this year is better quality.
The server was down for forty minutes on Sunday night.
We can move the deadline, but only once.
The contract with the cleaning company ends in June.
He said that the project would be finished by Christmas, and I said that I would believe it when I saw it.
The first part of the report describes the problem, the second part compares three possible solutions.
I suggest that we split the work, so that one team writes the code while the other one talks to the users.
If we hire four people now, they will be productive in the autumn, which is exactly when we need them.
The customers do not complain about the price, they complain about the time that it takes to get an answer.
After a long discussion the board decided to keep the factory in the north open for at least three more years.
Good evening.
Here is the news.
Stay with us.
And now the weather.
It will rain in the north and stay dry in the south.
The temperature will fall below zero during the night.
The bridge was closed after an accident this morning.
Thousands of people walked through the center of the city.
The museum shows paintings from five hundred years of history.
Scientists have found water under the surface of the moon.
The train to the airport leaves every fifteen minutes.
The mayor promised to build eight hundred new apartments.
Our guest tonight has written eleven books about the sea.
The old theater was saved by the people who live next to it.
She learned to play the piano when she was six years old.
The home team won by three goals to one.
In the second half they hardly touched the ball.
The fire started in the kitchen of a small restaurant.
A farmer found the coins in a field near the river.
The island can only be reached by boat.
Bread, milk and eggs are more expensive than last year.
The forest is home to bears, wolves and very many birds.
The captain decided to wait for a better wind.
The story begins in a small village by the sea.
He opened the letter, read it twice, and put it into the fire.
My grandmother kept her money in a box under the bed.
The children ran down the hill and jumped into the water.
They walked in silence until they reached the gate.
The doctor listened, nodded, and wrote something down.
The lamp on the table was the only light in the house.
Every morning the same man bought the same newspaper.
The cat slept on the warm stones in front of the door.
It was the longest winter that anybody could remember.
The road to the mountains was blocked by snow for almost three weeks, and food became rare in the villages.
The director of the museum said that the picture had been in the cellar for sixty years, and nobody had noticed it.
When the storm was over, the fishermen went back to the harbor and counted the boats that were still there.
The government wants to spend two billion on railways, and most of the money will go to lines outside the big cities.
She had worked as a nurse, a teacher and a driver before she wrote her first song at the age of forty one.
The company, which was founded by two brothers in a garage, now has more than nine thousand workers in twelve countries.
You take the second street on the left, walk past the church, and the bakery is right in front of you.
In this program we talk about the history of bread, from the first farmers to the machines of today.
Wash the apples, cut them into small pieces, and cook them with a little sugar and water for ten minutes.
The more I read about the deep sea, the less I understand why we know so much about the moon.
Check the oil.
Turn left at the station.
Open the window.
Bring your passport.
Write it down.
I left my keys in the car.
The coffee is too hot to drink.
The password is written on a yellow piece of paper.
Do you have a table for two?
We arrived late because the road was flooded.
The blue bag belongs to my sister.
The library is open until eight.
I have never been to the opera.
There are thirty chairs and only one table.
The shop sells shoes, hats and umbrellas.
The plane landed on time, but our luggage did not.
You should drink more water and sleep eight hours.
The garden looks better after the rain.
Two plus two is four.
The dog barked at the postman again.
I would rather walk than wait for another bus.
The elevator is broken, please use the stairs.
The second key opens the door behind the kitchen.
Daniel plays the guitar, and Emma sings.
The patient has no pain and slept well.
Take one tablet in the morning and two in the evening.
The blood pressure is slightly higher than last week.
""".strip().splitlines()
)
